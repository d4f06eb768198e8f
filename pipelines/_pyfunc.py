"""The registered model as MLflow loads it: code by name, weights by safetensors, no pickle.

``mlflow.pyfunc.load_model("models:/iwm@champion").predict(images)`` takes uint8 images
``[B, H, W, 3]`` of any size and returns ``z_cls``, float32 ``[B, D]``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class Encoder(PythonModel):
    """The encoder of a released model folder."""

    def load_context(self, context: Any) -> None:
        """Load the weights that lie among the artifacts."""
        from iwm.serving.engine import Engine

        self.engine = Engine.load(Path(context.artifacts["model"]))

    def predict(
        self,
        context: Any,  # noqa: ARG002 - MLflow's signature
        model_input: np.ndarray,  # MLflow knows the bare class only
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> npt.NDArray[np.float32]:
        """Latents of images."""
        fitted = [self.engine.preprocess(image) for image in np.asarray(model_input, np.uint8)]
        return self.engine.encode(np.stack(fitted)).z_cls


set_model(Encoder())

"""The registered model as MLflow loads it: code by name, weights by safetensors, no pickle.

``mlflow.pyfunc.load_model("models:/iwm@champion").predict(images)`` takes uint8 images
``[B, H, W, 3]`` of any size and returns ``z_cls``, float32 ``[B, D]``; a tokenizer, and dynamics
in tokens, return the images as they come back from their tokens, uint8 ``[B, h, w, 3]``. A world
model on vectors takes ``{"state": [B, S], "actions": [B, K, A]}`` and returns the states after
each action, float32 ``[B, K, S]``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class Released(PythonModel):
    """A released model folder."""

    def load_context(self, context: Any) -> None:
        """Load the weights that lie among the artifacts."""
        from iwm.models.registry import load_model
        from iwm.models.saving import read_config

        folder = Path(context.artifacts["model"])
        self.tokenizer: Any = None
        self.embodied: Any = None
        kind = read_config(folder).get("model")
        if kind == "embodied":
            self.embodied = load_model(folder)
            return
        if kind in ("vqvae", "vqvae-dynamics"):
            model = load_model(folder)
            self.tokenizer = getattr(model, "tokenizer", model)
            return
        from iwm.serving.engine import Engine

        self.engine = Engine.load(folder)

    def predict(
        self,
        context: Any,  # noqa: ARG002 - MLflow's signature
        model_input: np.ndarray,  # MLflow knows the bare class only
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> np.ndarray[Any, Any]:
        """Latents of images, images through their tokens, or states after actions."""
        if self.embodied is not None:
            return self._foretell(model_input)
        images = np.asarray(model_input, np.uint8)
        if self.tokenizer is None:
            fitted = [self.engine.preprocess(image) for image in images]
            return self.engine.encode(np.stack(fitted)).z_cls
        import torch

        from iwm.serving.preprocess import Preprocess

        fit = Preprocess.of_model(self.tokenizer)
        fitted = [fit(image) for image in images]
        rebuilt: np.ndarray[Any, Any] = self.tokenizer.reconstruct(
            torch.from_numpy(np.stack(fitted))
        ).numpy()
        return rebuilt

    def _foretell(self, given: Any) -> np.ndarray[Any, Any]:
        import torch

        state, actions = (
            torch.from_numpy(np.asarray(given[name], np.float32)) for name in ("state", "actions")
        )
        told: np.ndarray[Any, Any] = self.embodied.predict(state, actions).numpy()
        return told


set_model(Released())

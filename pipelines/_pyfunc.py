"""The registered model as MLflow loads it: code by name, weights by safetensors, no pickle.

``mlflow.pyfunc.load_model("models:/iwm@champion").predict(...)`` takes and returns, by the kind of
model:

- image world models: uint8 images ``[B, H, W, 3]`` of any size; ``z_cls``, float32 ``[B, D]``.
- a tokenizer, and dynamics in tokens: the same images; the images as they come back from their
  tokens, uint8 ``[B, h, w, 3]``.
- a variational recurrent world model: ``{"frames": uint8 [B, T, H, W, 3], "actions": [B, N]}``,
  the actions' numbers in its vocabulary, int64 (one that takes more than names: action vectors,
  float32 ``[B, N, A]``), the first T - 1 of them taken between the frames; what it imagines after
  the others, uint8 ``[B, N - T + 1, h, w, 3]``.
- a critic of permanence: ``{"before": uint8 [B, 2, H, W, 3], "after": uint8 [B, H, W, 3]}``; the
  log odds that what each cell showed is gone, float32 ``[B, h, w]``.
- a world model on vectors: ``{"state": [B, S], "actions": [B, K, A]}``; the states after each
  action, float32 ``[B, K, S]``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

Array = np.ndarray[Any, Any]


class Released(PythonModel):
    """A released model folder."""

    def load_context(self, context: Any) -> None:
        """Load the weights that lie among the artifacts."""
        from iwm.models.saving import read_config

        folder = Path(context.artifacts["model"])
        kind = str(read_config(folder).get("model"))
        self.answer = ANSWERS.get(kind, _latents)(folder)

    def predict(
        self,
        context: Any,  # noqa: ARG002 - MLflow's signature
        model_input: np.ndarray,  # MLflow knows the bare class only
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> Array:
        """See the module."""
        return self.answer(model_input)


def _latents(folder: Path) -> Callable[[Any], Array]:
    from iwm.serving.engine import Engine

    engine = Engine.load(folder)

    def answer(images: Any) -> Array:
        fitted = [engine.preprocess(image) for image in np.asarray(images, np.uint8)]
        return engine.encode(np.stack(fitted)).z_cls

    return answer


def _rebuilt(folder: Path) -> Callable[[Any], Array]:
    import torch

    from iwm.models.registry import load_model
    from iwm.serving.preprocess import Preprocess

    model = load_model(folder)
    tokenizer = getattr(model, "tokenizer", model)
    fit = Preprocess.of_model(tokenizer)

    def answer(images: Any) -> Array:
        fitted = [fit(image) for image in np.asarray(images, np.uint8)]
        rebuilt: Array = tokenizer.reconstruct(torch.from_numpy(np.stack(fitted))).numpy()
        return rebuilt

    return answer


def _imagined(folder: Path) -> Callable[[Any], Array]:
    import torch

    from iwm.models.registry import load_model
    from iwm.serving.preprocess import Preprocess

    model = load_model(folder)
    fit = Preprocess.of_model(model)

    def answer(given: Any) -> Array:
        watched = np.asarray(given["frames"], np.uint8)
        fitted = np.stack([[fit(frame) for frame in frames] for frames in watched])
        frames = torch.from_numpy(fitted).permute(0, 1, 4, 2, 3)
        taken = torch.from_numpy(np.asarray(given["actions"]))
        actions = model.action_vectors(taken.long()) if taken.ndim == 2 else taken.float()
        horizon = actions.shape[1] - frames.shape[1] + 1
        found = model.rollout(frames, actions, horizon, "mean").frames
        seen: Array = (found * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()
        return seen

    return answer


def _missed(folder: Path) -> Callable[[Any], Array]:
    import torch

    from iwm.models.registry import load_model
    from iwm.serving.preprocess import Preprocess

    model = load_model(folder)
    fit = Preprocess.of_model(model)

    def answer(given: Any) -> Array:
        before, after = (np.asarray(given[name], np.uint8) for name in ("before", "after"))
        earlier = np.stack([[fit(frame) for frame in frames] for frames in before])
        later = np.stack([fit(frame) for frame in after])
        shown = torch.from_numpy(earlier).permute(0, 1, 4, 2, 3)
        told: Array = model.vanished(shown, torch.from_numpy(later).permute(0, 3, 1, 2)).numpy()
        return told

    return answer


def _foretold(folder: Path) -> Callable[[Any], Array]:
    import torch

    from iwm.models.registry import load_model

    model = load_model(folder)

    def answer(given: Any) -> Array:
        state, actions = (
            torch.from_numpy(np.asarray(given[name], np.float32)) for name in ("state", "actions")
        )
        told: Array = model.predict(state, actions).numpy()
        return told

    return answer


ANSWERS: dict[str, Callable[[Path], Callable[[Any], Array]]] = {
    "vqvae": _rebuilt,
    "vqvae-dynamics": _rebuilt,
    "vrnn": _imagined,
    "permanence": _missed,
    "embodied": _foretold,
}


set_model(Released())

"""The engine: weights in, ``encode``, ``predict`` and ``rollout`` out. Knows nothing of HTTP.

An action vector is ``[augmentation | one-hot of a named action | continuous action]``; models
that know augmentations only have the first part alone.

Calls take and give numpy arrays with a leading batch axis, keep no state between them
and may come from any thread. Every prediction that starts from ``z_cls`` alone runs on
the CLS and action tokens only: no patch tokens are made up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from iwm.data.augment import AUG_DIM
from iwm.errors import ConfigError, DataError, ModelError
from iwm.files import read_json
from iwm.models.iwm import Prediction
from iwm.serving.actions import position
from iwm.serving.calibration import CALIBRATION_FILE, Calibration
from iwm.serving.preprocess import Preprocess

CARD_FILE = "card.json"

Floats = npt.NDArray[np.float32]
Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Latents:
    """``z_cls [B, D]`` and ``z_patches [B, N, D]``."""

    z_cls: Floats
    z_patches: Floats


@dataclass(frozen=True)
class Predictions:
    """Predicted latents and their calibrated figures.

    Shapes for one step: ``z_cls [B, D]``, ``z_patches [B, N, D]`` or ``None``, ``mrr`` and
    ``uncertainty [B]`` or ``None`` without a calibration. A rollout has an axis of steps
    after the first.
    """

    z_cls: Floats
    z_patches: Floats | None
    mrr: Floats | None
    uncertainty: Floats | None


@dataclass(frozen=True)
class Earlier:
    """Earlier frames, oldest first: ``z_cls [B, h, D]``, ``actions [B, h, A]`` after each."""

    z_cls: Floats
    actions: Floats


def choose_device(name: str) -> torch.device:
    """The device that ``name`` means; ``auto`` takes the first accelerator, else the CPU.

    Raises:
        ConfigError: no such device here. There is no silent fall-back.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"IWM_DEVICE: no device {name!r} here: {reason}") from None
    if device.type == "meta":
        raise ConfigError(f"IWM_DEVICE: no device {name!r} here: it holds no numbers")
    return device


class Engine:
    """One model, ready to answer.

    Args:
        model: an IWM or ActionIWM as ``iwm.models`` makes it.
        device: where it runs; see :func:`choose_device`.
        calibration: what makes figures of its error head; ``None`` answers none.
        card: facts about the model for ``GET /model``.
    """

    def __init__(
        self,
        model: Any,
        device: str = "auto",
        calibration: Calibration | None = None,
        card: dict[str, Any] | None = None,
    ) -> None:
        self.device = choose_device(device)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.calibration = calibration
        self.card = card or {}
        self.preprocess = Preprocess.of_model(model)
        self.aug_dim: int = model.aug_dim
        """A, the length of an action vector."""
        self.vocabulary: tuple[str, ...] = tuple(getattr(model, "vocabulary", ()))
        """Actions that have names."""
        self.history: int = getattr(model, "history", 1) - 1
        """Earlier frames that a prediction can attend to."""
        self._acts = hasattr(model, "action_vectors")
        self.augmentation_dim: int = AUG_DIM if self._acts else self.aug_dim
        """Numbers of an action vector that describe an augmentation."""
        self._warm_up()

    @classmethod
    def load(cls, folder: Path, device: str = "auto") -> Engine:
        """Load ``config.json`` and ``model.safetensors``, and the calibration where it lies beside.

        Raises:
            ModelError: the folder is no model, or does not fit this software.
            ConfigError: no such device.
        """
        from iwm.models.registry import load_model

        if not folder.is_dir():
            raise ModelError(f"{folder}: no such model folder")
        model = load_model(folder)
        calibration = folder / CALIBRATION_FILE
        card = folder / CARD_FILE
        return cls(
            model,
            device,
            Calibration.read(calibration) if calibration.exists() else None,
            read_json(card) if card.exists() else None,
        )

    def _warm_up(self) -> None:
        """Run every path once: first calls allocate, choose kernels, and learn the widths."""
        latents = self.encode(np.zeros((1, *self.preprocess.size, 3), np.uint8))
        self.patches, self.latent_dim = latents.z_patches.shape[1:]
        actions = np.zeros((1, 2, self.aug_dim), np.float32)
        self.rollout(latents.z_cls, actions)
        self.rollout(latents.z_cls, actions, latents.z_patches)
        if self.history:
            past = Earlier(latents.z_cls[:, None], actions[:, :1])
            self.rollout(latents.z_cls, actions, history=past)

    def action_vector(self, names: Sequence[str | None]) -> Floats:
        """Vectors ``[K, A]`` of named actions; ``None`` is an action that is not known.

        Raises:
            DataError: a name that the vocabulary lacks, also under another common name.
        """
        vectors = np.zeros((len(names), self.aug_dim), np.float32)
        for row, name in enumerate(names):
            if name is None:
                continue
            if not self.vocabulary:
                raise DataError("this model knows no actions by name; send numbers instead")
            vectors[row, self.augmentation_dim + position(name, self.vocabulary)] = 1.0
        return vectors

    def _tensor(self, array: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    @torch.inference_mode()
    def encode(self, images: Images) -> Latents:
        """Latents of images ``[B, H, W, 3]``, already at the model's size (see ``preprocess``)."""
        pixels = self._tensor(images).permute(0, 3, 1, 2)
        z_cls, z_patches = self.model.encode(pixels)
        return Latents(z_cls.float().cpu().numpy(), z_patches.float().cpu().numpy())

    def predict(
        self,
        z_cls: Floats,
        actions: Floats,
        z_patches: Floats | None = None,
        history: Earlier | None = None,
    ) -> Predictions:
        """One step: ``z_cls [B, D]``, ``actions [B, A]``, ``z_patches [B, N, D]`` or ``None``."""
        steps = self.rollout(z_cls, actions[:, None], z_patches, history)
        return Predictions(
            steps.z_cls[:, 0],
            None if steps.z_patches is None else steps.z_patches[:, 0],
            None if steps.mrr is None else steps.mrr[:, 0],
            None if steps.uncertainty is None else steps.uncertainty[:, 0],
        )

    @torch.inference_mode()
    def rollout(
        self,
        z_cls: Floats,
        actions: Floats,
        z_patches: Floats | None = None,
        history: Earlier | None = None,
    ) -> Predictions:
        """``actions [B, K, A]``: K predictions, each from the one before.

        Args:
            z_cls: ``[B, D]``.
            actions: as :meth:`action_vector` makes them, or augmentations.
            z_patches: ``[B, N, D]``, to predict the patches too.
            history: at most :attr:`history` earlier frames.
        """
        cls, steps = self._tensor(z_cls), self._tensor(actions)
        if not self._acts:
            out, patches = self._step_by_step(cls, steps, z_patches)
        else:
            out, patches = self._with_history(cls, steps, z_patches, history)
        return Predictions(
            out.z_cls.float().cpu().numpy(),
            None if patches is None else patches.float().cpu().numpy(),
            *self._figures(
                out.log_error,
                with_patches=z_patches is not None,
                with_history=history is not None,
            ),
        )

    def _step_by_step(
        self, cls: Tensor, steps: Tensor, z_patches: Floats | None
    ) -> tuple[Prediction, Tensor | None]:
        """A model that takes one latent and one action."""
        patches = None if z_patches is None else self._tensor(z_patches)
        made = []
        for step in range(steps.shape[1]):
            made.append(self.model.predict(cls, steps[:, step], patches))
            cls, patches = made[-1].z_cls, made[-1].z_patches
        return _stacked(made)

    def _with_history(
        self, cls: Tensor, steps: Tensor, z_patches: Floats | None, history: Earlier | None
    ) -> tuple[Prediction, Tensor | None]:
        """A model that attends to earlier frames; one new token a step where CLS is all."""
        from iwm.models.action import History

        past = None
        if history is not None:
            past = History(self._tensor(history.z_cls), self._tensor(history.actions))
        if z_patches is None:
            return self.model.rollout(cls, steps, past), None
        patches, made = self._tensor(z_patches), []
        for step in range(steps.shape[1]):
            action = steps[:, step]
            made.append(self.model.predict(cls, action, patches, past))
            seen = (cls[:, None], action[:, None])
            if past is not None:
                seen = (torch.cat([past.z_cls, seen[0]], 1), torch.cat([past.action, seen[1]], 1))
            begin = max(0, seen[0].shape[1] - self.history)
            past = History(seen[0][:, begin:], seen[1][:, begin:])
            cls, patches = made[-1].z_cls, made[-1].z_patches
        return _stacked(made)

    def _figures(
        self, log_error: Tensor, *, with_patches: bool, with_history: bool
    ) -> tuple[Floats | None, Floats | None]:
        found = self.calibration
        if found is None:
            return None, None
        figures = found.with_patches if with_patches else found.cls_only
        if with_history:
            figures = found.history
        return figures(log_error.float().cpu().numpy())


def _stacked(made: Sequence[Prediction]) -> tuple[Prediction, Tensor | None]:
    """Steps as one prediction with an axis of steps, and its patches."""
    patches = [step.z_patches for step in made if step.z_patches is not None]
    together = torch.stack(patches, 1) if patches else None
    cls = torch.stack([step.z_cls for step in made], 1)
    return Prediction(cls, None, torch.stack([step.log_error for step in made], 1)), together

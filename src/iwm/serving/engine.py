"""The engine: weights in; ``encode``, ``predict``, ``rollout``, ``plan``, ``surprise`` out.

Knows nothing of HTTP.

An action vector is ``[augmentation | one-hot of a named action | continuous action]``; models
that know augmentations only have the first part alone.

Calls take and give numpy arrays with a leading batch axis, keep no state between them
and may come from any thread. Every prediction that starts from ``z_cls`` alone runs on
the CLS and action tokens only: no patch tokens are made up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from iwm.data.augment import AUG_DIM
from iwm.errors import DataError, ModelError
from iwm.files import read_json
from iwm.models.thin import thin
from iwm.serving.actions import position
from iwm.serving.calibration import CALIBRATION_FILE, Calibration
from iwm.serving.config import Precision
from iwm.serving.device import Numbers, choose_device
from iwm.serving.plan import Planned, Search, search
from iwm.serving.preprocess import Preprocess
from iwm.serving.recording import Programs
from iwm.serving.surprise import Surprises, surprises

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
    log_error: Floats
    """What the error head says, uncalibrated: the shape of ``mrr``."""


@dataclass(frozen=True)
class Earlier:
    """Earlier frames, oldest first: ``z_cls [B, h, D]``, ``actions [B, h, A]`` after each."""

    z_cls: Floats
    actions: Floats

    def repeated(self, times: int) -> Earlier:
        """Each row ``times`` in a row."""
        return Earlier(np.repeat(self.z_cls, times, axis=0), np.repeat(self.actions, times, axis=0))


class Engine:
    """One model, ready to answer.

    Args:
        model: an IWM or ActionIWM as ``iwm.models`` makes it.
        device: where it runs; see :func:`choose_device`.
        calibration: what makes figures of its error head; ``None`` answers none.
        card: facts about the model for ``GET /model``.
        precision: numbers it computes in; see :mod:`iwm.serving.precision` for a checked choice.
        folder: where it was read from; ``None`` if it was made here.
    """

    def __init__(
        self,
        model: Any,
        device: str = "auto",
        calibration: Calibration | None = None,
        card: dict[str, Any] | None = None,
        precision: Precision = "float32",
        folder: Path | None = None,
    ) -> None:
        self.folder = folder
        self.device = choose_device(device)
        self.model = model.to(self.device).eval().requires_grad_(False)
        thin(self.model)
        self.numbers = Numbers(self.model, self.device, precision)
        self._programs = Programs(self.model)
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
    def load(cls, folder: Path, device: str = "auto", precision: Precision = "float32") -> Engine:
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
            precision,
            folder,
        )

    def _warm_up(self) -> None:
        """Run every path once: first calls allocate, choose kernels, and learn the widths."""
        latents = self.encode(np.zeros((1, *self.preprocess.size, 3), np.uint8))
        self.patches, self.latent_dim = latents.z_patches.shape[1:]
        if self.device.type == "cpu" and self.numbers.precision == "float32":
            with torch.inference_mode():
                self._programs.record()
        actions = np.zeros((1, 2, self.aug_dim), np.float32)
        self.rollout(latents.z_cls, actions)
        self.rollout(latents.z_cls, actions, latents.z_patches)
        if self.history:
            past = Earlier(latents.z_cls[:, None], actions[:, :1])
            self.rollout(latents.z_cls, actions, history=past)
        if self.plans:
            goal = latents.z_cls[0]
            self.plan(Search(goal, goal, "goal", self.vocabulary, 2, 8, 2))

    @property
    def variant(self) -> str:
        """What the model is: ``core``, ``invariant``, ``equivariant``, ``action``."""
        told = self.card.get("phase") or getattr(self.model.config, "variant", None)
        return str(told or ("action" if self._acts else "core"))

    @cached_property
    def name(self) -> str:
        """Name and version, as headers can hold them: ``iwm-action/3``."""
        told = f"{self.card.get('model') or self.variant}/{self.card.get('version') or 0}"
        return told.encode("ascii", "replace").decode()

    @property
    def plans(self) -> bool:
        """Whether there are named actions to plan over."""
        return bool(self.vocabulary)

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

    def tensor(self, array: npt.NDArray[Any]) -> Tensor:
        """An array on the model's device; copied where it may not be written to."""
        return torch.from_numpy(np.require(array, requirements=("C", "W"))).to(self.device)

    def past(self, history: Earlier | None) -> Any:
        """The model's own history object; ``None`` without earlier frames."""
        from iwm.models.action import History

        if history is None:
            return None
        return History(self.tensor(history.z_cls), self.tensor(history.actions))

    @torch.inference_mode()
    def encode(self, images: Images) -> Latents:
        """Latents of images ``[B, H, W, 3]``, already at the model's size (see ``preprocess``)."""
        pixels = self.tensor(images).permute(0, 3, 1, 2)
        with self.numbers.context():
            z_cls, z_patches = self._programs.encode(pixels)
        return Latents(z_cls.cpu().numpy(), z_patches.cpu().numpy())

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
            steps.log_error[:, 0],
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
        cls, steps = self.tensor(z_cls), self.tensor(actions)
        patches = None if z_patches is None else self.tensor(z_patches)
        with self.numbers.context():
            if patches is not None:
                latents, errors, patches = self._with_patches(cls, steps, patches, history)
            else:
                past = self.model.past(self.past(history)) if self._acts else None
                latents, errors = self._programs.rollout(cls, steps, past)
        log_error = errors.cpu().numpy()
        mrr = uncertainty = None
        if self.calibration is not None:
            figures = self.calibration.figures(
                with_patches=z_patches is not None, with_history=history is not None
            )
            mrr, uncertainty = figures(log_error)
        return Predictions(
            latents.cpu().numpy(),
            None if patches is None else patches.cpu().numpy(),
            mrr,
            uncertainty,
            log_error,
        )

    def plan(self, wanted: Search) -> Planned:
        """The best sequence of named actions; see :func:`iwm.serving.plan.search`."""
        return search(self, wanted)

    def surprise(
        self,
        z_cls: Floats,
        actions: Floats,
        came: Floats,
        among: Sequence[int] = (),
        claimed: npt.NDArray[np.int64] | None = None,
        history: Earlier | None = None,
    ) -> Surprises:
        """How surprising transitions are; see :func:`iwm.serving.surprise.surprises`."""
        return surprises(self, z_cls, actions, came, among, claimed, history)

    def _with_patches(
        self, cls: Tensor, steps: Tensor, patches: Tensor, history: Earlier | None
    ) -> tuple[Tensor, ...]:
        """Latents [B, K, D], logs of their errors [B, K] and patches [B, K, N, D]."""
        from iwm.models.action import History

        past = self.past(history)
        latents, errors, every = [], [], []
        for step in range(steps.shape[1]):
            action = steps[:, step]
            if self._acts:
                made = self.model.predict(cls, action, patches, past)
                seen = (cls[:, None], action[:, None])
                if past is not None:
                    seen = torch.cat([past.z_cls, seen[0]], 1), torch.cat([past.action, seen[1]], 1)
                begin = max(0, seen[0].shape[1] - self.history)
                past = History(seen[0][:, begin:], seen[1][:, begin:])
            else:
                made = self.model.predict(cls, action, patches)
            cls, patches = made.z_cls, made.z_patches
            latents.append(cls)
            errors.append(made.log_error)
            every.append(patches)
        return tuple(torch.stack(column, 1).float() for column in (latents, errors, every))

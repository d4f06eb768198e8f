"""The engine: weights in, ``encode``, ``predict`` and ``rollout`` out. Knows nothing of HTTP.

Calls take and give numpy arrays with a leading batch axis, keep no state between them
and may come from any thread. Every prediction that starts from ``z_cls`` alone runs on
the CLS and action tokens only: no patch tokens are made up.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from iwm.errors import ConfigError, ModelError
from iwm.files import read_json
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
        model: an IWM as ``iwm.models`` makes it.
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
        self.rollout(latents.z_cls, np.zeros((1, 2, self.aug_dim), np.float32))
        self.predict(latents.z_cls, np.zeros((1, self.aug_dim), np.float32), latents.z_patches)

    def _tensor(self, array: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    @torch.inference_mode()
    def encode(self, images: Images) -> Latents:
        """Latents of images ``[B, H, W, 3]``, already at the model's size (see ``preprocess``)."""
        pixels = self._tensor(images).permute(0, 3, 1, 2)
        z_cls, z_patches = self.model.encode(pixels)
        return Latents(z_cls.float().cpu().numpy(), z_patches.float().cpu().numpy())

    def predict(
        self, z_cls: Floats, actions: Floats, z_patches: Floats | None = None
    ) -> Predictions:
        """One step: ``z_cls [B, D]``, ``actions [B, A]``, ``z_patches [B, N, D]`` or ``None``."""
        steps = self.rollout(z_cls, actions[:, None], z_patches)
        return Predictions(
            steps.z_cls[:, 0],
            None if steps.z_patches is None else steps.z_patches[:, 0],
            None if steps.mrr is None else steps.mrr[:, 0],
            None if steps.uncertainty is None else steps.uncertainty[:, 0],
        )

    @torch.inference_mode()
    def rollout(
        self, z_cls: Floats, actions: Floats, z_patches: Floats | None = None
    ) -> Predictions:
        """``actions [B, K, A]``: K predictions, each from the one before."""
        cls, steps = self._tensor(z_cls), self._tensor(actions)
        patches = None if z_patches is None else self._tensor(z_patches)
        all_cls, all_patches, log_errors = [], [], []
        for step in range(steps.shape[1]):
            prediction = self.model.predict(cls, steps[:, step], patches)
            cls, patches = prediction.z_cls, prediction.z_patches
            all_cls.append(cls)
            log_errors.append(prediction.log_error)
            if patches is not None:
                all_patches.append(patches)
        figures = self._figures(torch.stack(log_errors, 1), z_patches is not None)
        return Predictions(
            torch.stack(all_cls, 1).float().cpu().numpy(),
            torch.stack(all_patches, 1).float().cpu().numpy() if all_patches else None,
            *figures,
        )

    def _figures(
        self, log_error: torch.Tensor, with_patches: bool
    ) -> tuple[Floats | None, Floats | None]:
        if self.calibration is None:
            return None, None
        figures = self.calibration.with_patches if with_patches else self.calibration.cls_only
        return figures(log_error.float().cpu().numpy())

"""Augmentation retrieval: does the predicted latent pick the right transformation?

For each held-out image a bank of latents of the same image under other colour jitters is
made; from the clean image's latent and one jitter's action vector the model predicts, and
the true latent is ranked by distance among the bank (IWM, arXiv 2403.00504, section 4).
The latent ranked is the one that ``/predict`` returns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iwm.data.augment import AUG_DIM, JITTER, jitter, sample_jitter, to_float
from iwm.data.config import AugmentConfig
from iwm.models.iwm import IWM
from iwm.progress import Progress

ARMS = ("model", "identity", "null_action", "shuffled_action")
MODES = ("cls_only", "with_patches", "patches")
"""CLS predicted from CLS alone; CLS predicted with patches; the patches themselves."""


@dataclass(frozen=True)
class Retrieval:
    """Results of N images x Q queries.

    ``reciprocal``: {mode: {arm: [N, Q]}}; ``error`` and ``predicted_error``: {mode: [N, Q]},
    root mean square per dimension of the CLS prediction and what the model's error head
    expected (modes cls_only and with_patches); ``nearest`` [N, Q]: the bank entry nearest
    to the CLS-only prediction; ``jitters`` [N, bank, 4]; entry q is query q's truth.
    """

    reciprocal: dict[str, dict[str, np.ndarray[Any, Any]]]
    error: dict[str, np.ndarray[Any, Any]]
    predicted_error: dict[str, np.ndarray[Any, Any]]
    nearest: np.ndarray[Any, Any]
    jitters: np.ndarray[Any, Any]


def distances(one: Tensor, other: Tensor) -> Tensor:
    """Euclidean distances [Q, K], without the cancellation of the matrix-product form."""
    return torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist")


def ranks(predicted: Tensor, bank: Tensor) -> Tensor:
    """Rank (1 is best) of bank entry q for prediction q; ties count half.

    Args:
        predicted: [Q, F].
        bank: [K, F], K >= Q.

    Half a rank per tie: a collapsed model, whose distances are all equal, gets the middle
    rank instead of the first.
    """
    distance = distances(predicted, bank)
    true = distance.diagonal().unsqueeze(1)
    nearer = (distance < true).sum(1)
    tied = (distance == true).sum(1) - 1
    return 1 + nearer + 0.5 * tied


def jitter_action(jitters: Tensor, aug_dim: int = AUG_DIM) -> Tensor:
    """Action vectors [n, aug_dim] from a clean image to jitters [n, 4]."""
    action = jitters.new_zeros(len(jitters), aug_dim)
    action[:, :JITTER] = jitters
    return action


@torch.no_grad()
def augmentation_retrieval(
    model: IWM,
    images: Tensor,
    config: AugmentConfig,
    *,
    bank: int = 256,
    queries: int = 8,
    seed: int = 0,
    label: str = "retrieval",
) -> Retrieval:
    """Measure one model on images uint8 [N, 3, H, W]; see the module's text.

    Args:
        model: in eval mode.
        images: held-out frames.
        config: strengths of the jitter; fixed by the evaluation, not by the model.
        bank: latents per image.
        queries: predictions per image, each of a different true transformation.
        seed: of the transformations.
        label: of the progress bar.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    reciprocal: dict[str, dict[str, list[Tensor]]] = {
        mode: {arm: [] for arm in ARMS} for mode in MODES
    }
    error: dict[str, list[Tensor]] = {mode: [] for mode in MODES[:2]}
    expected: dict[str, list[Tensor]] = {mode: [] for mode in MODES[:2]}
    nearest, jitters = [], []
    with Progress(label, len(images), "images") as progress:
        for image in images:
            drawn = sample_jitter(bank, config, generator)
            # A wrong action is that of another member of the bank.
            step = torch.randint(1, bank, (queries,), generator=generator)
            other = (torch.arange(queries) + step) % bank
            clean = to_float(image[None].to(device))
            views = jitter(clean.expand(bank, -1, -1, -1), drawn.to(device))
            bank_cls, bank_patches = model.encode(views)
            source_cls, source_patches = (
                z.expand(queries, *z.shape[1:]) for z in model.encode(clean)
            )
            actions = {
                "model": drawn[:queries],
                "null_action": torch.zeros(queries, JITTER),
                "shuffled_action": drawn[other],
            }
            found: dict[tuple[str, str], Tensor] = {
                ("cls_only", "identity"): source_cls,
                ("with_patches", "identity"): source_cls,
                ("patches", "identity"): source_patches.flatten(1),
            }
            for arm, values in actions.items():
                action = jitter_action(values, model.aug_dim).to(device)
                alone = model.predict(source_cls, action)
                full = model.predict(source_cls, action, source_patches)
                assert full.z_patches is not None
                found["cls_only", arm] = alone.z_cls
                found["with_patches", arm] = full.z_cls
                found["patches", arm] = full.z_patches.flatten(1)
                if arm == "model":
                    for mode, prediction in (("cls_only", alone), ("with_patches", full)):
                        difference = prediction.z_cls - bank_cls[:queries]
                        error[mode].append(difference.square().mean(-1).sqrt().cpu())
                        expected[mode].append(prediction.log_error.exp().cpu())
                    nearest.append(distances(alone.z_cls, bank_cls).argmin(1).cpu())
            flat = {"patches": bank_patches.flatten(1)}
            for (mode, arm), prediction_ in found.items():
                place = ranks(prediction_, flat.get(mode, bank_cls))
                reciprocal[mode][arm].append((1 / place).cpu())
            jitters.append(drawn)
            progress.advance()
    return Retrieval(
        {m: {a: _stack(rows) for a, rows in arms.items()} for m, arms in reciprocal.items()},
        {mode: _stack(rows) for mode, rows in error.items()},
        {mode: _stack(rows) for mode, rows in expected.items()},
        _stack(nearest),
        _stack(jitters),
    )


def _stack(rows: list[Tensor]) -> np.ndarray[Any, Any]:
    return torch.stack(rows).numpy()

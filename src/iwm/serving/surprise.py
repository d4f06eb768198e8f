"""Surprise: how far what came lies from what was predicted, on the calibration's scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from iwm.evaluation.surprise import Transitions

if TYPE_CHECKING:
    from iwm.serving.calibration import Figures
    from iwm.serving.engine import Earlier, Engine

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Surprises:
    """``value [B]``; ``threshold`` is ``None`` where the model carries no calibration."""

    value: Floats
    threshold: float | None
    measure: Literal["combined", "distance"]


def surprises(
    engine: Engine,
    z_cls: Floats,
    actions: Floats,
    came: Floats,
    among: Sequence[int] = (),
    claimed: npt.NDArray[np.int64] | None = None,
    history: Earlier | None = None,
) -> Surprises:
    """Score transitions.

    Args:
        engine: predicts.
        z_cls: [B, D], latents before.
        actions: [B, A], what was done.
        came: [B, D], latents after.
        among: places in the vocabulary of what could have been done.
        claimed: [B], places in ``among`` of what was done; ``None`` where it has no name.
        history: of ``z_cls``.
    """
    found = engine.calibration
    if found is None:
        return Surprises(_distance(engine, z_cls, actions, came, history), None, "distance")
    figures = found.figures(with_patches=False, with_history=history is not None)
    if claimed is None or figures.combined is None:
        distance = _distance(engine, z_cls, actions, came, history)
        return Surprises(distance * figures.surprise_scale, found.surprise_threshold, "distance")
    value = _combined(engine, figures, z_cls, actions, came, among, claimed, history)
    return Surprises(value, found.surprise_threshold, "combined")


def _distance(
    engine: Engine, z_cls: Floats, actions: Floats, came: Floats, history: Earlier | None
) -> Floats:
    predicted = engine.predict(z_cls, actions, history=history)
    distance: Floats = np.linalg.norm(predicted.z_cls - came, axis=-1)
    return distance


def _combined(
    engine: Engine,
    figures: Figures,
    z_cls: Floats,
    actions: Floats,
    came: Floats,
    among: Sequence[int],
    claimed: npt.NDArray[np.int64],
    history: Earlier | None,
) -> Floats:
    """One batch of every state under every action: rows are state-major."""
    count, names = len(z_cls), len(among)
    begin, end = engine.augmentation_dim, engine.augmentation_dim + len(engine.vocabulary)
    tried = np.repeat(actions, names, axis=0)
    tried[:, begin:end] = 0.0
    tried[np.arange(count * names), begin + np.tile(np.asarray(among), count)] = 1.0
    past = None if history is None else history.repeated(names)
    predicted = engine.predict(np.repeat(z_cls, names, axis=0), tried, history=past)
    latents = predicted.z_cls.reshape(count, names, -1)
    seen = Transitions(
        "",
        np.linalg.norm(latents - came[:, None], axis=-1),
        np.exp(predicted.log_error.reshape(count, names)),
        claimed,
        np.zeros(count, np.int64),
    )
    assert figures.combined is not None
    return figures.combined("combined", seen).astype(np.float32)

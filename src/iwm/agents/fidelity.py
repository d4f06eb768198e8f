"""Fidelity of intentions: whether who hears 49 bytes decides as who sees the whole trajectory.

A case is a pair of held-out states. The sender imagines n futures and means to follow its best
one. The receiver imagines its own n, and chooses among them knowing the sender's plan: its own
score and the distance to the sender, both in standard deviations over its futures, once to
keep away from the sender and once to keep with it. The choice is made three times: with the
sender's states in full, with what its intention says, and with nothing. The share of equal
choices with nothing tells how much there was to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from iwm.agents.codec import TrajectoryCodec
from iwm.agents.coordination import distance_to_nearest
from iwm.agents.imagination import Floats, Goal, ImaginedTrajectoryGenerator
from iwm.agents.intention import MAX_BYTES, IntentionCompressor
from iwm.agents.reasoner import HeuristicReasoner, confidence, standardised
from iwm.errors import DataError
from iwm.evaluation.statistics import Figure, bootstrap_mean

_AT_ONCE = 16
"""Cases that are imagined together."""
_GOAL = 1
"""Names in intentions: one digit."""


@dataclass(frozen=True)
class Choices:
    """Of each case and each wish (away, together), places of the futures chosen [N, 2]."""

    full: npt.NDArray[np.int64]
    intention: npt.NDArray[np.int64]
    nothing: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]
    """[N], of the intentions."""
    error: Floats
    """[N]: RMSE of the decoded states, in standard deviations."""


def choices(
    own: npt.NDArray[Any],
    scores: npt.NDArray[Any],
    plans: npt.NDArray[Any],
    messages: list[str],
    compressor: IntentionCompressor,
) -> Choices:
    """Decide every case three times.

    Args:
        own: [N, n, H, S], the receivers' futures.
        scores: [N, n], their own worth.
        plans: [N, H, S], what the senders mean to do.
        messages: [N], what they say of it.
        compressor: reads that.

    Raises:
        DataError: an intention without a plan.
    """
    codec = compressor.codec
    full, heard, nothing, sizes, errors = [], [], [], [], []
    for futures, worth, plan, message in zip(own, scores, plans, messages, strict=True):
        said = compressor.decompress(message)
        if said.features is None or said.trajectory is None:
            raise DataError("intention: the goal leaves no space for a plan")
        whole = distance_to_nearest(_normalised(codec, futures), _normalised(codec, plan)[None])
        told = distance_to_nearest(codec.project(futures), said.features[None])
        full.append([_best(worth, sign * whole) for sign in (1, -1)])
        heard.append([_best(worth, sign * told) for sign in (1, -1)])
        nothing.append([int(worth.argmax())] * 2)
        sizes.append(len(message.encode()))
        off = (said.trajectory[: len(plan)] - plan) / codec.scale
        errors.append(np.sqrt(np.square(off).mean()))
    return Choices(
        np.array(full), np.array(heard), np.array(nothing), np.array(sizes), np.array(errors)
    )


def intention_fidelity(
    generator: ImaginedTrajectoryGenerator,
    compressor: IntentionCompressor,
    states: npt.NDArray[Any],
    episodes: npt.NDArray[Any],
    *,
    goals: npt.NDArray[Any] | None = None,
    seed: int = 0,
) -> dict[str, Figure]:
    """The share of decisions that an intention leaves as they were.

    Args:
        generator: imagines for sender and receiver.
        compressor: the codec must not have seen these episodes.
        states: [N, S], held-out; each is a receiver once and a sender once.
        episodes: [N], of the states: the intervals resample these.
        goals: [N, S], targets of the states, NaN in what does not matter; the model's own
            reward when ``None``.
        seed: of the pairs and of what is imagined.

    Returns:
        ``fidelity`` (equal to the choice with everything known), ``without`` (the same for
        who hears nothing), ``bytes`` of a message, ``error`` of the decoded states in standard
        deviations.

    Raises:
        DataError: fewer than two states.
    """
    count = len(states)
    if count < 2:
        raise DataError(f"states: expected at least two, given {count}")
    order = np.random.default_rng(seed).permutation(count)
    sender_of = np.empty(count, np.int64)
    sender_of[order] = np.roll(order, 1)  # nobody is its own sender
    rule = HeuristicReasoner()
    own, scores, plans, messages = [], [], [], []
    for first in range(0, count, _AT_ONCE):
        rows = np.arange(first, min(first + _AT_ONCE, count))
        aims = [Goal(_GOAL, None if goals is None else goals[row]) for row in rows]
        found = generator.generate(states[rows], aims, seed=seed + first)
        worth = rule.scores(found.returns, found.uncertainty)
        best = worth.argmax(1)
        own.append(found.states)
        scores.append(worth)
        for row in range(len(rows)):
            plan = found.trajectory(row, int(best[row]))
            sure = float(confidence(plan.uncertainty))
            plans.append(plan.states)
            messages.append(compressor.compress(plan, _GOAL, sure))
    decided = choices(
        np.concatenate(own),
        np.concatenate(scores),
        np.stack(plans)[sender_of],
        [messages[sender] for sender in sender_of],
        compressor,
    )
    if decided.bytes.max() > MAX_BYTES:
        raise DataError(f"intention: {decided.bytes.max()} bytes, expected {MAX_BYTES} at most")
    every = np.asarray(episodes)
    return {
        "fidelity": bootstrap_mean((decided.intention == decided.full).mean(1), every, seed=seed),
        "without": bootstrap_mean((decided.nothing == decided.full).mean(1), every, seed=seed),
        "bytes": bootstrap_mean(decided.bytes.astype(np.float64), every, seed=seed),
        "error": bootstrap_mean(decided.error, every[sender_of], seed=seed),
    }


def _normalised(codec: TrajectoryCodec, states: npt.NDArray[Any]) -> Floats:
    return np.asarray((states - codec.center) / codec.scale, np.float32)


def _best(worth: npt.NDArray[Any], distance: npt.NDArray[Any]) -> int:
    return int((worth + standardised(distance)).argmax())

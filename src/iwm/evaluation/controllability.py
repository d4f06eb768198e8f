"""Whether what is imagined does what it is told: milestone 4."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from iwm.evaluation import pixels
from iwm.evaluation.inverse import InverseDynamics
from iwm.evaluation.optical_flow import horizontal_flow
from iwm.evaluation.sequences import Dreamer, Windows, imagine
from iwm.evaluation.statistics import Figure, bootstrap_mean, bootstrap_ratio

Array = np.ndarray[Any, Any]
Figures = dict[str, Any]

LEFT, RIGHT = "turn_left", "turn_right"
"""Names of the actions that turn a view, where a game has them."""


def delta_psnr(
    windows: Windows, told: Tensor, random: Tensor, present: int, **boot: int
) -> Figures:
    """How much nearer the true frame comes under the true actions than under random ones.

    Genie's measure (Bruce et al. 2024, section 3.1): PSNR of the frame imagined under the true
    actions minus that under actions drawn at random, t frames on; there t is 4.

    Args:
        windows: N of them, which hold K frames after ``present``.
        told: imagined under the true actions, uint8 [N, K, H, W, 3].
        random: imagined under random ones, the same shape.
        present: the last frame that was shown.
        boot: ``resamples`` and ``seed``.

    Returns:
        ``k1`` ... ``kK``: ``true_action`` and ``random_action`` in dB, and ``delta``.
    """
    steps = told.shape[1]
    true = windows.frames[:, present + 1 : present + 1 + steps]
    arms = {"true_action": pixels.psnr(told, true), "random_action": pixels.psnr(random, true)}
    arms["delta"] = arms["true_action"] - arms["random_action"]
    return {
        f"k{step + 1}": {
            name: bootstrap_mean(values[:, step], windows.episode, **boot)
            for name, values in arms.items()
        }
        for step in range(steps)
    }


def agreement(
    reader: InverseDynamics,
    windows: Windows,
    told: Tensor,
    random: Tensor,
    random_actions: Tensor,
    present: int,
    **boot: int,
) -> dict[str, Figure]:
    """Share of actions that a reader reads right, from real pairs and from imagined ones.

    Args:
        reader: trained on real pairs of other episodes.
        windows: N of them, which hold K frames after ``present``.
        told: imagined under the true actions, uint8 [N, K, H, W, 3].
        random: imagined under ``random_actions``, the same shape.
        random_actions: int64 [N, K].
        present: the last frame that was shown.
        boot: ``resamples`` and ``seed``.

    Returns:
        ``real``: of the true pairs at the same steps; ``imagined``: of successive imagined
        frames; ``relative``: their ratio; ``random``: the action fed, where it was a random one,
        so that no habit of the player helps; ``relative_random``; and ``chance``: always the
        commonest action of these windows.
    """
    steps = told.shape[1]
    true = windows.frames[:, present + 1 : present + 1 + steps]
    # Between the first imagined frame and the second lies the second action.
    actions = windows.actions[:, present + 1 : present + steps]
    choices = windows.choices.repeat_interleave(steps - 1, 0)

    def right(frames: Tensor, done: Tensor) -> Array:
        pair = frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)
        found: Array = (reader.read(*pair, choices) == done.flatten()).double().numpy()
        return found

    episode = np.repeat(windows.episode, steps - 1)
    arms = {
        "real": right(true, actions),
        "imagined": right(told, actions),
        "random": right(random, random_actions[:, 1:]),
        "chance": (actions == actions.flatten().mode().values).flatten().double().numpy(),
    }
    figures = {name: bootstrap_mean(values, episode, **boot) for name, values in arms.items()}
    if arms["real"].any():
        for name, arm in (("relative", "imagined"), ("relative_random", "random")):
            figures[name] = bootstrap_ratio(arms[arm], arms["real"], episode, **boot)
    return figures


def turning(
    model: Dreamer,
    windows: Windows,
    *,
    present: int,
    context: int,
    steps: int = 6,
    seed: int = 0,
    temperature: float = 0.0,
    **boot: int,
) -> dict[str, Figure]:
    """Apparent motion of the view, in pixels a frame to the right, while a turn is held.

    Args:
        model: in eval mode.
        windows: starts; those whose game has both turns are used.
        present: the last frame that is shown.
        context: frames shown.
        steps: frames imagined under each turn.
        seed: of the dreams.
        temperature: of the dreams.
        boot: ``resamples`` of the bootstrap.

    Returns:
        ``turn_left`` (to be above 0: the view turns left, so what is seen moves right),
        ``turn_right`` (below 0), their difference ``left_minus_right``, and the same for real
        frames of the windows under the action at hand: ``real_turn_left``,
        ``real_turn_right``. Empty for games without these actions.
    """
    if not {LEFT, RIGHT} <= set(model.vocabulary):
        return {}
    places = {name: model.vocabulary.index(name) for name in (LEFT, RIGHT)}
    turnable = windows.choices[:, list(places.values())].all(1)
    if not turnable.any():
        return {}
    windows = windows.take(turnable)
    last = windows.frames[:, present : present + 1]
    flows: dict[str, Array] = {}
    for name, place in places.items():
        held = torch.full((len(windows), steps), place)
        made = imagine(
            model,
            windows,
            held,
            present=present,
            context=context,
            seed=seed,
            temperature=temperature,
        ).frames
        flows[name] = _flow(torch.cat([last, made], 1)).mean(1)
    figures = {
        name: bootstrap_mean(values, windows.episode, seed=seed, **boot)
        for name, values in {**flows, "left_minus_right": flows[LEFT] - flows[RIGHT]}.items()
    }
    real, episode = _flow(windows.frames), windows.episode[:, None]
    for name, place in places.items():
        here = (windows.actions == place).numpy()
        if here.any():
            labels = np.broadcast_to(episode, here.shape)[here]
            figures[f"real_{name}"] = bootstrap_mean(real[here], labels, seed=seed, **boot)
    return figures


def _flow(frames: Tensor) -> Array:
    """Horizontal flow between successive frames, uint8 [N, T, H, W, 3] -> [N, T - 1]."""
    before, after = (part.flatten(0, 1).numpy() for part in (frames[:, :-1], frames[:, 1:]))
    return horizontal_flow(before, after).reshape(len(frames), -1)

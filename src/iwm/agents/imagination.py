"""Imagined trajectories: n futures of every agent, in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from iwm.agents.intention import Trajectory
from iwm.errors import ModelError

if TYPE_CHECKING:
    from iwm.agents.codec import TrajectoryCodec
    from iwm.models.embodied import Imagined, Policy, WorldModel

Floats = npt.NDArray[np.float32]

HOLD = 5
"""Steps that a random plan holds an action for."""


@dataclass(frozen=True)
class Goal:
    """What an agent wants.

    ``name``: what it is called in intentions, text or numbers. ``target [S]``: the state to get
    to, NaN in what does not matter; ``None`` to follow the model's own reward.
    """

    name: str | int | tuple[int | float, ...]
    target: Floats | None = None


@dataclass(frozen=True, eq=False)
class Imagination:
    """n futures of H steps of each of B agents; ``states[..., k, :]`` follow
    ``actions[..., k, :]``.
    """

    states: Floats
    """[B, n, H, S]."""
    actions: Floats
    """[B, n, H, A]."""
    returns: Floats
    """[B, n]."""
    uncertainty: Floats
    """[B, n, H]: expected RMSE of each state, in standard deviations of the states."""
    best: npt.NDArray[np.int64]
    """[B]: the future of the highest return."""
    features: Floats | None = None
    """[B, n, H, F]: the states in a codec's directions, where one was given."""

    def trajectory(self, agent: int, index: int) -> Trajectory:
        """One of the futures."""
        return Trajectory(
            self.states[agent, index],
            self.actions[agent, index],
            float(self.returns[agent, index]),
            self.uncertainty[agent, index],
        )


class ImaginedTrajectoryGenerator:
    """Imagines with a world model; the same seed imagines the same.

    Args:
        model: of states and actions.
        rollouts: n, futures of an agent.
        horizon: H, steps of each.
        policy: what to do in imagined states; random plans that hold each action for
            :data:`HOLD` steps when ``None``.
        workers: threads that share a batch. A step is too small for cores to share; each
            thread rolls out some of the agents by itself.
    """

    def __init__(
        self,
        model: WorldModel,
        *,
        rollouts: int = 10,
        horizon: int = 50,
        policy: Policy | None = None,
        workers: int = 2,
    ) -> None:
        if rollouts < 1 or horizon < 1 or workers < 1:
            raise ModelError("rollouts, horizon and workers: expected at least 1 of each")
        self.model, self.rollouts, self.horizon, self.policy = model, rollouts, horizon, policy
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, "iwm-imagine", initializer=_alone)

    def generate(
        self,
        states: npt.ArrayLike | Tensor,
        goals: Sequence[Goal] = (),
        *,
        previous: npt.NDArray[Any] | None = None,
        plans: npt.NDArray[Any] | None = None,
        rollouts: int | None = None,
        horizon: int | None = None,
        codec: TrajectoryCodec | None = None,
        seed: int = 0,
    ) -> Imagination:
        """Imagine.

        Args:
            states: [B, S], where each agent is.
            goals: one for each agent. With targets, returns are nearness to them: minus the
                mean RMS distance, in standard deviations, discounted as rewards are. The
                model's own reward otherwise.
            previous: [B, H, A], what each agent chose a step ago: its rest is the first plan to
                be imagined again. A policy makes its own plans.
            plans: [H, A], [n, H, A] or [B, n, H, A], to be imagined instead of the policy or
                random plans.
            rollouts: n, where not the generator's own.
            horizon: H, where not the generator's own.
            codec: in whose directions the futures are given, too.
            seed: of plans and draws.

        Raises:
            ModelError: shapes that do not fit the model, numbers that are not finite, or targets
                for some agents only.
        """
        given = states if isinstance(states, Tensor) else torch.as_tensor(np.asarray(states))
        here = self.model.checked(given.float())
        count = len(here)
        if goals and len(goals) != count:
            raise ModelError(f"goals: expected one for each of {count} states, given {len(goals)}")
        n, steps = rollouts or self.rollouts, horizon or self.horizon
        policy: Policy | Tensor | None = self.policy
        if plans is not None:
            given = torch.as_tensor(np.asarray(plans, np.float32))
            policy = _fitted(given, (count, n, steps, self.model.action_dim))
        elif policy is None:
            policy = self._plans((count, n, steps, self.model.action_dim), previous, seed)
        targets = self._targets(goals)
        parts = min(self._workers, count)
        edges = [count * i // parts for i in range(parts + 1)]
        spans = [slice(*edges[i : i + 2]) for i in range(parts)]
        part = partial(self._part, here, policy, targets, codec, (n, steps, seed))
        found = list(self._pool.map(part, spans))

        returns = _joined([one.returns for one, _ in found])
        features = None
        if codec is not None:
            features = _joined([seen for _, seen in found if seen is not None])
        return Imagination(
            _joined([one.states for one, _ in found]),
            _joined([one.actions for one, _ in found]),
            returns,
            _joined([one.uncertainty for one, _ in found]),
            returns.argmax(1),
            features,
        )

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=True)

    def _part(
        self,
        here: Tensor,
        policy: Policy | Tensor | None,
        targets: Tensor | None,
        codec: TrajectoryCodec | None,
        settings: tuple[int, int, int],
        span: slice,
    ) -> tuple[Imagined, Tensor | None]:
        reward = None
        if targets is not None:
            reward = partial(_nearness, targets[span], self.model.state_std)
        if isinstance(policy, Tensor):
            policy = policy[span]
        n, steps, seed = settings
        found = self.model.imagine(here[span], policy, n, steps, seed=seed, reward=reward)
        # Decoded and seen here, beside the other threads.
        states = found.states
        if codec is None:
            return found, None
        view, origin = (torch.from_numpy(array).to(states) for array in (codec.view, codec.origin))
        with torch.inference_mode():
            return found, states @ view - origin

    def _plans(
        self, shape: tuple[int, int, int, int], previous: npt.NDArray[Any] | None, seed: int
    ) -> Tensor:
        """[B, n, H, A], random, but for the first of each agent where it chose before."""
        from iwm.models.embodied.imagine import random_plans

        count, n, steps, width = shape
        drawn = random_plans(
            n,
            steps,
            width,
            discrete=bool(self.model.config.vocabulary),
            hold=HOLD,
            generator=torch.Generator().manual_seed(seed),
        )
        plans = drawn.expand(shape)
        if previous is None:
            return plans
        before = torch.as_tensor(np.asarray(previous, np.float32))
        if before.shape != (count, steps, width):
            raise ModelError(
                f"previous: shape {list(before.shape)}, expected [B, H, A] = "
                f"{[count, steps, width]}"
            )
        plans = plans.clone()
        plans[:, 0] = torch.cat([before[:, 1:], before[:, -1:]], 1)
        return plans

    def _targets(self, goals: Sequence[Goal]) -> Tensor | None:
        """[B, S], if there are any."""
        rows = [np.asarray(goal.target) for goal in goals if goal.target is not None]
        if not rows:
            return None
        if len(rows) != len(goals):
            raise ModelError("goals: expected a target in all of them, or in none")
        size = self.model.state_dim
        if any(row.shape != (size,) or np.isinf(row).any() for row in rows):
            raise ModelError(f"target: expected [{size}] without infinities")
        return torch.as_tensor(np.stack(rows), dtype=torch.float32)


def _joined(parts: list[Tensor]) -> Any:
    arrays = [part.cpu().numpy() for part in parts]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _alone() -> None:
    """This thread computes by itself."""
    torch.set_num_threads(1)


def _fitted(plans: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """Plans as [B, n, H, A]."""
    if not 2 <= plans.ndim <= 4 or plans.shape != shape[-plans.ndim :]:
        raise ModelError(
            f"plans: shape {list(plans.shape)}, expected [B, n, H, A] = {list(shape)}, or its last "
            "three or two dimensions"
        )
    return plans.expand(shape)


def _nearness(targets: Tensor, scale: Tensor, states: Tensor, _: Tensor) -> Tensor:
    """Rewards [B, n, H] whose sum is minus the mean RMS distance to the targets [B, S]."""
    targets = targets.to(states)
    matters = ~targets.isnan()
    weights = matters / scale
    off = (states - targets.nan_to_num()[:, None, None]) * weights[:, None, None]
    squared = off.square().sum(-1) / matters.sum(-1).clamp_min(1)[:, None, None]
    return -squared.sqrt() / states.shape[2]

"""Who tries to reach the goals: the planner with its world model, and what it is held against."""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iwm.data.config import ShardConfig
from iwm.data.frames import resize_frame
from iwm.evaluation.control_config import CloningConfig, ControlConfig
from iwm.evaluation.goals import StateTable, where
from iwm.gameplay.policies import Policy
from iwm.gameplay.sources import Branching, Frame
from iwm.planning.config import SolverConfig
from iwm.planning.costs import Cost, GoalLatent, StepsToGoal, Uncertainty, Weighted
from iwm.planning.distance import TemporalDistance
from iwm.planning.dynamics import Discrete, Dynamics, ModelDynamics, Trajectories
from iwm.planning.planner import Controller, Planner
from iwm.planning.recall import RecallingDynamics, Shown
from iwm.planning.steps import StepNetwork


class Arm(Protocol):
    """One player with a goal; actions are positions in the control's own action names."""

    def begin(self, goal: Tensor, seed: int) -> None:
        """A new task: the goal's latent [D]."""
        ...

    def act(self, latent: Tensor, frame: Frame) -> int:
        """The next action, seeing a frame and its latent [D]."""
        ...


class Eye:
    """Frames of any size -> CLS latents [B, D] of a model, as its training data was made."""

    def __init__(self, model: Any) -> None:
        self._model = model
        height, width = model.config.image_size
        self._shape = ShardConfig(width=width, height=height, fit=model.config.fit)
        self._device = next(model.parameters()).device

    def __call__(self, frames: list[Frame]) -> Tensor:
        """Encode, 256 at a time."""
        small = np.stack([resize_frame(frame, self._shape) for frame in frames])
        images = torch.from_numpy(small).permute(0, 3, 1, 2)
        parts = [self._model.encode(part.to(self._device))[0] for part in torch.split(images, 256)]
        return torch.cat(parts).cpu()


def goal_cost(
    config: ControlConfig, distance: TemporalDistance | StepNetwork, goal: Tensor
) -> Cost:
    """Steps to the goal, with the latent distance and the uncertainty as configured."""
    terms: list[tuple[float, Cost]] = []
    if config.temporal_weight:
        steps = StepsToGoal(distance.to_goal(goal), config.reduction)
        terms.append((config.temporal_weight, steps))
    if config.latent_weight:
        terms.append((config.latent_weight, GoalLatent(goal, config.reduction)))
    if config.uncertainty_weight:
        terms.append((config.uncertainty_weight, Uncertainty(config.reduction)))
    return Weighted(terms)


class Planned:
    """Model-predictive control; what the dynamics are, subclasses say."""

    def __init__(
        self,
        space: Discrete,
        config: ControlConfig,
        solver: SolverConfig,
        distance: TemporalDistance | StepNetwork,
        seed: int,
    ) -> None:
        self.space, self._config, self._distance = space, config, distance
        self._controller = Controller(Planner(space, solver, seed), config.act)

    def begin(self, goal: Tensor, seed: int) -> None:  # noqa: ARG002
        """Forget the last task."""
        self._controller.reset()
        self._cost = goal_cost(self._config, self._distance, goal)
        self._next: deque[int] = deque()

    def act(self, latent: Tensor, frame: Frame) -> int:  # noqa: ARG002
        """The plan's next action; a new plan when it has been acted out."""
        self.see(latent)
        if not self._next:
            actions, _ = self._controller.step(self.dynamics(latent), self._cost)
            self._next.extend(actions.tolist())
        action = self._next.popleft()
        self.took(action)
        return action

    def see(self, latent: Tensor) -> None:
        """A new frame's latent, before planning."""

    def took(self, action: int) -> None:
        """The action that is about to be taken."""

    def dynamics(self, latent: Tensor) -> Dynamics:
        """The world in its present state."""
        raise NotImplementedError


class ModelArm(Planned):
    """Plans with the world model, on the history that it has seen."""

    def __init__(
        self,
        model: Any,
        space: Discrete,
        config: ControlConfig,
        distance: TemporalDistance | StepNetwork,
        seed: int,
    ) -> None:
        super().__init__(space, config, config.solver, distance, seed)
        self._model = model
        ids = torch.tensor([model.vocabulary.index(name) for name in space.names])
        self._vectors = model.action_vectors(ids)

    def begin(self, goal: Tensor, seed: int) -> None:
        """Forget the last task."""
        super().begin(goal, seed)
        self._latents: list[Tensor] = []
        self._actions: list[int] = []

    def see(self, latent: Tensor) -> None:
        """Remember the latent."""
        self._latents.append(latent)

    def took(self, action: int) -> None:
        """Remember the action."""
        self._actions.append(action)

    def dynamics(self, latent: Tensor) -> Dynamics:
        """The model with the last frames and actions as its history, or recalling."""
        from iwm.models.action import History

        memory = self._distance
        if self._config.recall and isinstance(memory, TemporalDistance):
            radius = memory.config.imagined * memory.unit
            nodes = memory.nodes
            return RecallingDynamics(self._model, self.space, latent, nodes, radius, self._shown())
        history = None
        if (kept := min(len(self._latents), self._model.history) - 1) > 0:
            earlier = torch.stack(self._latents[-1 - kept : -1]).unsqueeze(0)
            taken = self._vectors[torch.tensor(self._actions[-kept:])]
            history = History(earlier, taken.unsqueeze(0))
        return ModelDynamics(self._model, self.space, latent, history)

    def _shown(self) -> Shown | None:
        """The steps of this task so far."""
        if not self._actions:
            return None
        seen = torch.stack(self._latents)
        return Shown(seen[:-1], torch.tensor(self._actions), seen[1:])


class TableDynamics:
    """The true game, from a table of all its states."""

    def __init__(self, table: StateTable, latents: Tensor, state: int) -> None:
        self._outcomes = torch.from_numpy(table.outcomes)
        self._latents, self._state = latents, state

    def rollout(self, actions: Tensor) -> Trajectories:
        """Latents of the true outcomes."""
        state = torch.full((len(actions),), self._state)
        states = []
        for action in actions.unbind(1):
            state = self._outcomes[state, action]
            states.append(state)
        return Trajectories(self._latents[torch.stack(states, 1)])


class BranchedDynamics:
    """The true game, played out for every candidate and brought back to where it was.

    Common beginnings of candidates are played once, and remembered while the state stays.
    """

    def __init__(self, source: Branching, actions: tuple[int, ...], eye: Eye) -> None:
        self._source, self._actions, self._eye = source, actions, eye
        self._handle = source.save()
        self._seen: dict[tuple[int, ...], Tensor] = {}

    def rollout(self, actions: Tensor) -> Trajectories:
        """Latents of the true outcomes; after the game's end the last one stays."""
        sequences = [tuple(row) for row in actions.tolist()]
        for sequence in sorted(set(sequences)):
            if sequence not in self._seen:
                self._play(sequence)
        self._source.restore(self._handle)
        length = actions.shape[1]
        rows = [
            torch.stack([self._seen[sequence[: step + 1]] for step in range(length)])
            for sequence in sequences
        ]
        return Trajectories(torch.stack(rows))

    def _play(self, sequence: tuple[int, ...]) -> None:
        self._source.restore(self._handle)
        frames: list[Frame] = [self._source.frame()]
        for action in sequence:
            outcome = self._source.step(self._actions[action])
            if outcome.frame is not None:
                frames.append(outcome.frame)
            if outcome.done or outcome.frame is None:
                break
        latents = self._eye(frames)
        for step in range(len(sequence)):
            self._seen[sequence[: step + 1]] = latents[min(step + 1, len(latents) - 1)]


class OracleArm(Planned):
    """The same planner and cost with the true game in place of the model."""

    def __init__(
        self,
        source: Branching,
        actions: tuple[int, ...],
        space: Discrete,
        config: ControlConfig,
        distance: TemporalDistance | StepNetwork,
        eye: Eye,
        seed: int,
        table: StateTable | None = None,
    ) -> None:
        solver = config.solver if table is not None else config.oracle_solver or config.solver
        super().__init__(space, config, solver, distance, seed)
        self._source, self._actions, self._eye, self._table = source, actions, eye, table
        self._latents = None if table is None else eye(list(table.frames))

    def dynamics(self, latent: Tensor) -> Dynamics:  # noqa: ARG002
        """Branched from the game's present state."""
        if self._table is not None and self._latents is not None:
            state = self._table.index[where(self._source)]
            return TableDynamics(self._table, self._latents, state)
        return BranchedDynamics(self._source, self._actions, self._eye)


class PolicyArm:
    """A policy that knows no goal: the one that made the recordings."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def begin(self, goal: Tensor, seed: int) -> None:  # noqa: ARG002
        """A new episode for the policy."""
        self._policy.reset(seed)

    def act(self, latent: Tensor, frame: Frame) -> int:  # noqa: ARG002
        """The policy's choice."""
        return self._policy.choose(frame)


class CloningArm:
    """What the recordings' player did on the way to such a frame, sampled.

    Goal-conditioned behaviour cloning (Ghosh et al., arXiv 1912.06088): sampling follows
    the player's own mixture, where the likeliest action alone gets stuck.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def begin(self, goal: Tensor, seed: int) -> None:
        """A new goal."""
        self._goal = goal
        self._generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def act(self, latent: Tensor, frame: Frame) -> int:  # noqa: ARG002
        """A draw from the network's distribution."""
        logits = self._network(torch.cat([latent, self._goal]).unsqueeze(0))[0]
        return int(torch.multinomial(logits.softmax(0), 1, generator=self._generator))


def fit_cloning(
    latents: Tensor,
    actions: np.ndarray[Any, Any],
    episode: np.ndarray[Any, Any],
    choices: int,
    config: CloningConfig,
    seed: int = 0,
) -> nn.Module:
    """Train the cloning arm's network on recorded play.

    Args:
        latents: [N, D] of frames in the order of play.
        actions: [N] position among the choices taken after each frame; -1 where none was.
        episode: [N].
        choices: number of actions.
        config: settings.
        seed: of initialisation and draws.

    Returns:
        A network from [B, 2D] (latent, goal latent) to logits [B, choices].
    """
    torch.manual_seed(seed)
    width = latents.shape[1]
    network = nn.Sequential(
        nn.Linear(2 * width, config.hidden),
        nn.GELU(),
        nn.Linear(config.hidden, config.hidden),
        nn.GELU(),
        nn.Linear(config.hidden, choices),
    )
    rng = np.random.default_rng(seed)
    ends = np.append(np.flatnonzero(np.diff(episode)), len(episode) - 1)
    last = ends[np.searchsorted(ends, np.arange(len(episode)))]
    usable = np.flatnonzero((actions >= 0) & (last > np.arange(len(episode))))
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
    wanted = torch.from_numpy(actions)
    for _ in range(config.steps):
        at = rng.choice(usable, config.batch_size)
        goal = np.minimum(at + rng.integers(1, config.horizon + 1, len(at)), last[at])
        logits = network(torch.cat([latents[at], latents[goal]], dim=1))
        loss = F.cross_entropy(logits, wanted[at])
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
    return network.eval()

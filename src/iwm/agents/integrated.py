"""One agent: imagine, reason, compress."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from iwm.agents.imagination import Floats, Goal, Imagination, ImaginedTrajectoryGenerator
from iwm.agents.intention import IntentionCompressor, Trajectory
from iwm.agents.reasoner import HeuristicReasoner, Question, Reasoner, Verdict


@dataclass(frozen=True, eq=False)
class Thought:
    """What an agent came to: the action [A] to take now, the intention to send, the future it
    follows, whose advice that was, and all that it imagined.
    """

    action: Floats
    intention: str
    trajectory: Trajectory
    verdict: Verdict
    imagination: Imagination


class IntegratedAgent:
    """Thinks ahead at every step.

    Args:
        generator: imagines.
        compressor: says what is meant.
        reasoner: chooses; by rule when ``None``.
    """

    def __init__(
        self,
        generator: ImaginedTrajectoryGenerator,
        compressor: IntentionCompressor,
        reasoner: Reasoner | None = None,
    ) -> None:
        self.generator, self.compressor = generator, compressor
        self.reasoner = reasoner or HeuristicReasoner()
        self.reset()

    def reset(self) -> None:
        """Forget the plan: a new episode."""
        self._step = 0
        self._plan: Floats | None = None

    def think_and_act(self, state: npt.ArrayLike, goal: Goal | str) -> Thought:
        """Imagine, choose, compress.

        Args:
            state: [S].
            goal: what for; a mere name leaves the judgement to the model's own reward.

        Raises:
            ModelError: a state that does not fit the model.
            DataError: a goal whose name alone is longer than an intention.
        """
        wanted = Goal(goal) if isinstance(goal, str) else goal
        imagined = self.generator.generate(
            np.asarray(state, np.float32)[None],
            [wanted],
            previous=None if self._plan is None else self._plan[None],
            seed=self._step,
        )
        courses = self.compressor.codec.project(imagined.states[0])
        verdict = self.reasoner.reason(
            Question(
                str(wanted.name), imagined.returns[0], imagined.uncertainty[0], courses, self._step
            )
        )
        chosen = imagined.trajectory(0, verdict.index)
        self._plan = chosen.actions
        self._step += 1
        intention = self.compressor.compress(chosen, wanted.name, verdict.confidence)
        return Thought(chosen.actions[0], intention, chosen, verdict, imagined)

"""One recording: a policy plays a source until there are frames enough."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa

from iwm.errors import DataError
from iwm.files import atomic_path
from iwm.gameplay.config import RecordPlan
from iwm.gameplay.policies import Keyboard, Policy, automatic_policy
from iwm.gameplay.schema import NO_ACTION, Recording
from iwm.gameplay.sources import Frame, Source, open_source
from iwm.gameplay.writer import RecordingWriter

TRUTH_FILE = "truth.parquet"

_MAX_EMPTY_EPISODES = 100


def derive_seed(*parts: object) -> int:
    """A seed in [0, 2**31) from any parts, the same for ever and everywhere."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def play(plan: RecordPlan, seed: int, folder: Path, advance: Callable[[int], None]) -> int:
    """Make one recording.

    Episodes are seeded by (seed, plan name, episode number), so a plan's bytes depend
    neither on other plans nor on which process makes it. The last episode has at least
    two frames, so one frame more than asked may come.

    Args:
        plan: what to record.
        seed: the recording seed of the whole data set.
        folder: the recording's folder; must not hold anything yet.
        advance: called with the number of frames newly written.

    Returns:
        The number of frames written.

    Raises:
        ConfigError: the plan does not fit its game.
        DataError: the game does not start, or ends before it begins.
    """
    with closing(open_source(plan)) as source:
        recording = Recording(
            name=plan.name,
            source=plan.source,
            game=plan.game,
            fps=source.fps,
            width=plan.width,
            height=plan.height,
            actions=source.actions,
            licence=source.licence,
            seed=seed,
            software=dict(source.software),
            extra={**source.extra, "policy": plan.policy},
        )
        with _policy(plan, source) as policy:
            with RecordingWriter(folder, recording, plan.codec) as writer:
                session = _Session(plan, seed, source, policy, writer, advance)
                session.run()
            session.write_truth(folder)
        return writer.frames


def _policy(plan: RecordPlan, source: Source) -> AbstractContextManager[Policy]:
    if plan.policy == "keyboard":
        return Keyboard(source.actions, source.fps)
    return nullcontext(automatic_policy(plan, source.actions))


class _Session:
    """The loop over episodes, and the rows it has written."""

    def __init__(
        self,
        plan: RecordPlan,
        seed: int,
        source: Source,
        policy: Policy,
        writer: RecordingWriter,
        advance: Callable[[int], None],
    ) -> None:
        self._plan, self._seed = plan, seed
        self._source, self._policy, self._writer = source, policy, writer
        self._advance = advance
        self._truth: list[dict[str, Any]] = []

    def run(self) -> None:
        """Play episodes until there are frames enough or the person stops."""
        episode = attempt = empty = 0
        while self._writer.frames < self._plan.frames:
            before = self._writer.frames
            try:
                self._episode(episode, derive_seed(self._seed, self._plan.name, attempt))
            except (StopIteration, KeyboardInterrupt):
                if self._plan.policy != "keyboard":
                    raise
                return
            attempt += 1
            empty = 0 if self._writer.frames > before else empty + 1
            if empty == _MAX_EMPTY_EPISODES:
                raise DataError(
                    f"recording {self._plan.name}: {empty} episodes in a row ended at their first "
                    f"step; lower frame_skip ({self._plan.frame_skip})"
                )
            episode += 1 if self._writer.frames > before else 0

    def _episode(self, episode: int, seed: int) -> None:
        frame, truth = self._source.reset(seed), self._source.truth()
        self._policy.reset(derive_seed(seed, "policy"))
        step = 0
        while True:
            enough = self._writer.frames + 1 >= self._plan.frames
            if step and (enough or step + 1 >= self._plan.max_episode_steps):
                self._write(frame, truth, episode, step)
                return
            try:
                action = self._policy.choose(frame)
            except StopIteration:
                self._write(frame, truth, episode, step)
                raise
            outcome = self._source.step(action)
            if outcome.frame is None:
                # Nothing is shown after the end, so the frame before it is the episode's last.
                # It keeps the outcome; an episode of that one frame has no step and is left out.
                if step:
                    self._write(frame, truth, episode, step, NO_ACTION, outcome.reward, True)
                return
            self._write(frame, truth, episode, step, action, outcome.reward, outcome.done)
            frame, truth, step = outcome.frame, self._source.truth(), step + 1
            if outcome.done or outcome.truncated:
                self._write(frame, truth, episode, step)
                return

    def _write(
        self,
        frame: Frame,
        truth: dict[str, Any] | None,
        episode: int,
        step: int,
        action: int = NO_ACTION,
        reward: float = 0.0,
        done: bool = False,
    ) -> None:
        number = self._writer.frames
        time_s = number / self._source.fps
        self._writer.append(frame, episode, step, time_s, action, reward, done)
        if truth is not None:
            self._truth.append({"frame": number, **truth})
        self._advance(1)

    def write_truth(self, folder: Path) -> None:
        """Write what the source knows of its world, if it does."""
        import pyarrow.parquet as pq

        schema = self._source.truth_schema
        if schema is None:
            return
        with atomic_path(folder / TRUTH_FILE) as temporary:
            table = pa.Table.from_pylist(self._truth, schema=schema)
            pq.write_table(table, temporary, compression="zstd")

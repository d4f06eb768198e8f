"""Configuration of recording and ingestion."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from iwm.errors import ConfigError
from iwm.settings import settings

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Where = Literal["processes", "threads", "serial", "dask"]
"""Where work that can be spread runs; see :mod:`iwm.gameplay.executor`."""


@settings
class RecordPlan:
    """One recording to make: which game, how much of it, who plays."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
    """Name of the recording and of its folder."""
    source: Literal["vizdoom", "gymnasium", "procedural"]
    game: str
    """Scenario (ViZDoom), environment id (Gymnasium) or world (procedural)."""
    frames: Positive
    """Frames to record, over as many episodes as that takes."""
    policy: Literal["random_hold", "random", "scripted", "keyboard"] = "random_hold"
    frame_skip: Positive = 8
    """Engine tics per recorded step; the action is held for all of them."""
    width: Positive = 160
    height: Positive = 120
    hold_min: Positive = 1
    hold_max: Positive = 6
    """Steps for which ``random_hold`` keeps an action, drawn uniformly."""
    script: tuple[str, ...] = ()
    """Action names that ``scripted`` repeats."""
    max_episode_steps: Positive = 500
    actions: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Gymnasium: only these of the game's actions, in this order; all of them when null."""
    codec: Literal["ffv1", "h264"] = "ffv1"

    def __post_init__(self) -> None:
        """Refuse a choice of actions that would not be followed."""
        if self.actions is not None and self.source != "gymnasium":
            raise ConfigError(f"record: {self.name}.actions: only gymnasium's can be chosen")


@settings
class RecordConfig:
    """What ``record`` makes when ``data/`` is empty."""

    seed: Annotated[int, Field(ge=0)] = 7
    workers: Positive = 2
    plans: tuple[RecordPlan, ...]


@settings
class BranchPlan:
    """One counterfactual set."""

    name: str
    """A plan of ``record.plans``; plans without an entry here have no set."""
    states: Positive
    """States to branch."""


@settings
class BranchConfig:
    """Counterfactual sets: states of fresh episodes from which every action is tried."""

    plans: tuple[BranchPlan, ...]
    history: Annotated[int, Field(ge=1, le=64)] = 4
    """Frames of context kept with a state, its own included."""
    every: Positive = 6
    """Steps played between two branched states of an episode."""
    states_per_episode: Positive = 6
    """An episode ends after so many; figures are averaged over episodes, so few is better."""
    anomaly_share: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """An impossible outcome that changes a smaller share of the picture is not kept."""
    seed: Annotated[int, Field(ge=0)] = 7
    workers: Positive = 2


@settings
class RemovalPlan:
    """One set of removed objects."""

    name: str
    """A plan of ``record.plans``."""
    removals: Positive
    """Objects to take away."""


@settings
class RemovalConfig:
    """What engines take away in the midst of play, to learn from."""

    plans: tuple[RemovalPlan, ...] = ()
    """Plans without an entry, and play without an engine, have none."""
    every: Positive = 8
    """Mean number of steps between two removals of an episode."""
    removals_per_episode: Positive = 3
    """Few, so that there are many episodes."""
    seed: Annotated[int, Field(ge=0)] = 7
    workers: Positive = 2


@settings
class SplitConfig:
    """Episode split by hash: an episode never changes sides as data grows."""

    val: Share = 0.1
    test: Share = 0.1
    salt: str = "iwm"


@settings
class IngestConfig:
    """Decoding every frame once and writing the index."""

    executor: Where = "processes"
    workers: Positive = 2
    dask_address: str | None = None
    """Scheduler of ``executor: dask``, e.g. ``tcp://10.0.0.1:8786``; ``null``: the one that
    ``DASK_SCHEDULER_ADDRESS`` names."""
    max_quarantine_share: Share = 0.02
    """More frames than this set aside stops the run."""
    max_pixels: Positive = 16_777_216
    """A still image with more pixels than this is set aside, not decoded."""
    split: SplitConfig = SplitConfig()

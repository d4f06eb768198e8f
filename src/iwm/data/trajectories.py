"""Trajectories of vectors on disk and in batches: states, actions, rewards, by episode.

A set is a folder: ``trajectories.json`` says what the numbers are and which episodes are held
out, ``trajectories.safetensors`` holds them end to end. Whatever made the states, a simulator
or an encoder, a world model trains on them through the same loader.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from iwm.data.loader import epoch_order
from iwm.errors import ConfigError, DataError
from iwm.files import atomic_directory, read_json, write_json
from iwm.gameplay.config import SplitConfig
from iwm.gameplay.splits import split_of
from iwm.settings import parse, settings, to_dict
from iwm.versions import Format

INFO_FILE = "trajectories.json"
VALUES_FILE = "trajectories.safetensors"
FORMAT = Format("trajectories", current=1)
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Episode:
    """One episode: ``states`` float32 [T + 1, S], ``actions`` [T, A], ``rewards`` [T].

    ``actions[t]`` lead from ``states[t]`` to ``states[t + 1]``. ``key`` is unique; ``split``
    is drawn from it when empty.
    """

    key: str
    states: npt.NDArray[np.float32]
    actions: npt.NDArray[np.float32]
    rewards: npt.NDArray[np.float32]
    split: str = ""


@settings
class EpisodeInfo:
    """Where an episode stands."""

    key: str
    split: str
    first: int
    """Its first row."""
    states: int
    """T + 1."""


@settings
class TrajectoryInfo:
    """``trajectories.json``."""

    version: int = FORMAT.current
    source: str
    """What made the states."""
    state_dim: int
    action_dim: int
    state_names: tuple[str, ...] = ()
    velocities: tuple[int, ...] = ()
    """For each number of a state, where its velocity per second stands, or -1; empty where
    states hold none."""
    step_s: float = 1.0
    """Seconds from one state to the next, as velocities count them."""
    vocabulary: tuple[str, ...] = ()
    """Names of the actions, where actions are one-hot."""
    revision: str
    """Hash of the numbers and of who is held out."""
    episodes: tuple[EpisodeInfo, ...]


def write_trajectories(
    folder: Path, episodes: Sequence[Episode], split: SplitConfig, source: str, **facts: Any
) -> TrajectoryInfo:
    """Write a set, atomically.

    Args:
        folder: made or replaced when whole.
        episodes: at least one; all of the same widths.
        split: the shares held out; an episode's own ``split`` goes before.
        source: what made the states.
        facts: ``state_names``, ``velocities``, ``step_s``, ``vocabulary``.

    Raises:
        DataError: no episodes, shapes that differ, numbers that are not finite.
    """
    from safetensors.numpy import save_file

    if not episodes:
        raise DataError(f"{folder}: no episodes to write")
    for episode in episodes:
        _check(episode, episodes[0])
    first, placed = 0, []
    for episode in episodes:
        part = episode.split or split_of(source, _number(episode.key), split)
        placed.append(
            EpisodeInfo(key=episode.key, split=part, first=first, states=len(episode.states))
        )
        first += len(episode.states)
    # The last state of an episode has no action: a row of zeros keeps rows aligned.
    values = {
        "states": np.concatenate([episode.states for episode in episodes]),
        "actions": np.concatenate([_closed(episode.actions) for episode in episodes]),
        "rewards": np.concatenate([_closed(episode.rewards) for episode in episodes]),
    }
    digest = hashlib.sha256(repr([(item.key, item.split) for item in placed]).encode())
    for name in sorted(values):
        digest.update(np.ascontiguousarray(values[name], np.float32).tobytes())
    info = TrajectoryInfo(
        source=source,
        state_dim=values["states"].shape[1],
        action_dim=values["actions"].shape[1],
        revision=digest.hexdigest()[:32],
        episodes=tuple(placed),
        **facts,
    )
    with atomic_directory(folder) as temporary:
        floats = {name: np.ascontiguousarray(value, np.float32) for name, value in values.items()}
        save_file(floats, temporary / VALUES_FILE)
        write_json(temporary / INFO_FILE, to_dict(info))
    return info


def _check(episode: Episode, like: Episode) -> None:
    steps = len(episode.states) - 1
    shapes = (episode.states.shape[1:], episode.actions.shape, episode.rewards.shape)
    wanted = (like.states.shape[1:], (steps, *like.actions.shape[1:]), (steps,))
    if steps < 1 or episode.states.ndim != 2 or shapes != wanted:
        raise DataError(
            f"{episode.key}: states {episode.states.shape}, actions {episode.actions.shape}, "
            f"rewards {episode.rewards.shape} do not make T + 1, T and T rows of one width"
        )
    if not all(np.isfinite(part).all() for part in (episode.states, episode.actions)):
        raise DataError(f"{episode.key}: holds numbers that are not finite")


def _number(key: str) -> int:
    """A number for the draw of a split."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big")


def _closed(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.concatenate([values, np.zeros_like(values[:1])])


class TrajectoryStore:
    """A set, in memory.

    Args:
        folder: what :func:`write_trajectories` made.

    Raises:
        DataError: none there, damaged, or newer than this software.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info = _read_info(folder / INFO_FILE)
        self.states, self.actions, self.rewards = _read_values(folder / VALUES_FILE, self.info)

    def episodes(self, split: str) -> list[EpisodeInfo]:
        """The episodes of a split.

        Raises:
            DataError: there is none.
        """
        found = [item for item in self.info.episodes if item.split == split]
        if not found:
            raise DataError(f"{self.folder}: the split {split} has no episode; make more of them")
        return found

    def starts(self, split: str, window: int, stride: int) -> tuple[Rows, Rows]:
        """First rows of windows of ``window`` states that stay in one episode, every ``stride``
        states, and the number of each one's episode.
        """
        rows, labels = [], []
        for number, item in enumerate(self.info.episodes):
            if item.split == split and item.states >= window:
                mine = np.arange(item.first, item.first + item.states - window + 1, stride)
                rows.append(mine)
                labels.append(np.full(len(mine), number))
        if not rows:
            raise DataError(
                f"{self.folder}: the split {split} has no episode of {window} states; "
                "make longer episodes or shorten the window"
            )
        return np.concatenate(rows), np.concatenate(labels)

    def statistics(self) -> tuple[Tensor, Tensor, float, float]:
        """Mean and deviation of the training split: of states [S] and [S], and of rewards."""
        items = self.episodes("train")
        spans = [slice(item.first, item.first + item.states) for item in items]
        states = torch.cat([self.states[span] for span in spans])
        rewards = torch.cat([self.rewards[span][:-1] for span in spans])
        std = states.std(0, correction=0)
        return states.mean(0), std, rewards.mean().item(), rewards.std(correction=0).item()

    def windows(self, rows: Rows, window: int) -> StateBatch:
        """Windows that begin at ``rows``."""
        at = torch.from_numpy(rows[:, None] + np.arange(window))
        return StateBatch(
            self.states[at],
            self.actions[at],
            self.rewards[at],
            [f"{self.info.source} row {row}" for row in rows],
        )


@dataclass(frozen=True)
class StateBatch:
    """B windows of T states: ``states`` [B, T, S], ``actions`` [B, T, A], ``rewards`` [B, T]."""

    states: Tensor
    actions: Tensor
    rewards: Tensor
    keys: list[str]

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same batch on ``device``."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=non_blocking)
            for name in ("states", "actions", "rewards")
        }
        return replace(self, **moved)


class TrajectoryLoader:
    """Batches of windows of the training split: shuffled by (seed, epoch), split over ranks.

    Args:
        store: the set.
        split: which part.
        batch_size: windows a step over all ranks; what does not fill a step is left out.
        seed: of the order.
        window: states a window, T.
        stride: states from one window of an episode to the next.
        rank: this process's place among ``world``.
        world: processes that share each step.

    Raises:
        ConfigError: sizes that do not fit together.
        DataError: too few windows for one step.
    """

    def __init__(
        self,
        store: TrajectoryStore,
        split: str,
        batch_size: int,
        seed: int = 0,
        *,
        window: int = 2,
        stride: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if window < 2 or stride < 1 or not 0 <= rank < world <= batch_size:
            raise ConfigError(
                f"loader: window {window} (at least 2), stride {stride}, rank {rank} of {world} "
                f"and batch_size {batch_size} do not fit together"
            )
        self.store, self.window, self.seed = store, window, seed
        self.batch_size, self.rank, self.world = batch_size, rank, world
        self.starts, _ = store.starts(split, window, stride)
        if len(self) == 0:
            raise DataError(
                f"{store.folder}: the split {split} has {len(self.starts)} windows of {window} "
                f"states, too few for a batch of {batch_size}"
            )

    def __len__(self) -> int:
        return len(self.starts) // self.batch_size

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[StateBatch]:
        """The batches of an epoch from ``start_step`` on."""
        order = epoch_order(len(self.starts), self.seed, epoch)
        ends = self.batch_size * np.arange(self.world + 1) // self.world
        for step in range(start_step, len(self)):
            places = order[step * self.batch_size : (step + 1) * self.batch_size]
            mine = places[ends[self.rank] : ends[self.rank + 1]]
            yield self.store.windows(self.starts[mine], self.window)


def _read_info(path: Path) -> TrajectoryInfo:
    try:
        values = read_json(path)
    except FileNotFoundError:
        raise DataError(f"{path}: not found; run `iwm trajectories` first") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    FORMAT.check(values.get("version") if isinstance(values, dict) else None, path)
    try:
        return parse(TrajectoryInfo, values, str(path))
    except ConfigError as error:
        raise DataError(str(error)) from None


def _read_values(path: Path, info: TrajectoryInfo) -> tuple[Tensor, Tensor, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        values = load_file(path)
    except FileNotFoundError:
        raise DataError(f"{path}: not found") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    rows = sum(item.states for item in info.episodes)
    shapes = {
        "states": (rows, info.state_dim),
        "actions": (rows, info.action_dim),
        "rewards": (rows,),
    }
    for name, shape in shapes.items():
        found = tuple(values[name].shape) if name in values else None
        if found != shape:
            raise DataError(f"{path}: {name} has shape {found}, {INFO_FILE} says {shape}")
    return values["states"], values["actions"], values["rewards"]

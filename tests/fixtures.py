"""Small data for tests: a moving square on a textured ground, as real shards on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from iwm.data.config import ShardConfig
from iwm.data.frames import encode_frame
from iwm.data.shards import ShardSet, pack
from iwm.gameplay.index import INDEX_SCHEMA
from iwm.gameplay.schema import NO_ACTION, Recording

ACTIONS = ("stay", "left", "right", "up", "down")
MOVES = np.array([(0, 0), (0, -4), (0, 4), (-4, 0), (4, 0)])

Image8 = npt.NDArray[np.uint8]


def episode_frames(seed: int, steps: int, size: int) -> tuple[Image8, npt.NDArray[np.int64]]:
    """Frames uint8 [steps, size, size, 3] and the actions [steps] that move the square."""
    random = np.random.default_rng(seed)
    waves = random.uniform(0.05, 0.4, (3, 2))
    y, x = np.mgrid[:size, :size]
    ground = [100 + 60 * np.sin(a * x + b * y + 6 * a) for a, b in waves]
    colour = random.integers(0, 256, 3)
    place = random.integers(0, size - 16, 2)
    actions = random.integers(0, len(ACTIONS), steps)
    frames = np.repeat(np.stack(ground, -1).astype(np.uint8)[None], steps, 0)
    for step, action in enumerate(actions):
        top, left = place
        frames[step, top : top + 16, left : left + 16] = colour
        place = np.clip(place + MOVES[action], 0, size - 16)
    actions[-1] = NO_ACTION
    return frames, actions


def recording(name: str, size: int = 64) -> Recording:
    """Metadata of a made-up recording."""
    return Recording(
        name=name,
        source="procedural",
        game="square",
        fps=10.0,
        width=size,
        height=size,
        actions=ACTIONS,
        licence="CC0-1.0",
        seed=0,
    )


def write_store(
    folder: Path,
    cfg: ShardConfig = ShardConfig(frames_per_shard=50),  # noqa: B008  (frozen)
    recordings: tuple[str, ...] = ("one", "two"),
    episodes: int = 10,
    steps: int = 24,
    splits: tuple[str, ...] = ("train", "train", "val", "train", "test"),
    skip: frozenset[tuple[int, int]] = frozenset(),
) -> ShardSet:
    """Write shards of made-up play.

    Args:
        folder: to make.
        cfg: of the shards; frames are drawn at its size.
        recordings: their names.
        episodes: in each recording; episode i belongs to ``splits[i % len(splits)]``.
        steps: frames an episode.
        splits: see ``episodes``.
        skip: (episode, step) left out, as if the frame had been set aside.
    """
    rows: list[dict[str, object]] = []
    images: list[bytes] = []
    for number, name in enumerate(recordings):
        for episode in range(episodes):
            frames, actions = episode_frames(1000 * number + episode, steps, cfg.width)
            for step in range(steps):
                if (episode, step) in skip:
                    continue
                rows.append(
                    {
                        "key": f"{name}/{episode:06d}/{step:06d}",
                        "recording": name,
                        "episode": episode,
                        "step": step,
                        "time_s": 0.1 * (episode * steps + step),
                        "frame": episode * steps + step,
                        "action": int(actions[step]),
                        "action_vector": None,
                        "reward": float(step),
                        "done": step == steps - 1,
                        "width": cfg.width,
                        "height": cfg.height,
                        "luma_mean": float(frames[step].mean()),
                        "luma_std": float(frames[step].std()),
                        "sharpness": 1.0,
                        "phash": len(rows),
                        "sha1": hashlib.sha1(frames[step].tobytes()).digest(),
                        "status": "ok",
                        "split": splits[episode % len(splits)],
                    }
                )
                images.append(encode_frame(frames[step], cfg))
    table = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)
    described = {name: recording(name, cfg.width) for name in recordings}
    return pack(folder, table, images, cfg, described)

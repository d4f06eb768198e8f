"""What no tokenizer can give back of the procedural world's frames, because it is noise.

    python -m benchmarks.sprite_limits [--episodes 128] [--json FILE]

Every background pixel carries grain, drawn anew for each episode, the same in all channels: what
is not spent on grain is lost. The arms are perfect pictures but for that: all sprites and tiles as
they are, with one colour a tile, or with the exact mean of every 4x4 and 2x2 pixels. Each is held
against the frames as PNG shards hold them, and as JPEG shards do, whose chroma is halved;
``jpeg`` is what such a shard has itself lost of the frame that was drawn.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Image8 = npt.NDArray[np.uint8]

SIDE, TILE = 64, 8
STEPS = 20
"""Random actions before the frame that is taken of an episode."""
ARMS = {"one colour a tile": TILE, "means of 4x4 pixels": 4, "means of 2x2 pixels": 2}


def smoothed(frame: Image8, background: Image8, side: int) -> Image8:
    """A frame whose background has one colour in every ``side`` x ``side`` pixels.

    Args:
        frame: uint8 [H, W, 3].
        background: what it was drawn on, the same shape.
        side: divides a tile.
    """
    rows, columns, channels = background.shape
    blocks = background.reshape(rows // side, side, columns // side, side, channels)
    means = blocks.mean((1, 3)).round().astype(np.uint8).repeat(side, 0).repeat(side, 1)
    return np.where((frame == background).all(-1, keepdims=True), means, frame)


def frames(episodes: int, seed: int = 0) -> list[tuple[Image8, Image8]]:
    """A frame of each of some episodes, and its background, uint8 [64, 64, 3]."""
    from iwm.gameplay.config import RecordPlan
    from iwm.gameplay.sources.procedural import SpriteWorld

    plan = RecordPlan(
        name="sprites",
        source="procedural",
        game="sprites",
        frames=STEPS,
        frame_skip=1,
        width=SIDE,
        height=SIDE,
    )
    world, draw = SpriteWorld(plan), np.random.default_rng(seed)
    found = []
    for episode in range(episodes):
        frame = world.reset(seed + episode)
        for _ in range(STEPS):
            outcome = world.step(int(draw.integers(len(world.actions))))
            if outcome.done or outcome.frame is None:
                break
            frame = outcome.frame
        found.append((frame.copy(), world.layers()[0].copy()))
    return found


def measure(episodes: int) -> dict[str, dict[str, dict[str, float]]]:
    """PSNR in dB and SSIM, means over episodes: kind of shard -> arm -> ``psnr``, ``ssim``."""
    import torch

    from iwm.data.config import ShardConfig
    from iwm.data.frames import decoder, encode_frame
    from iwm.evaluation import pixels

    drawn = frames(episodes)
    stack = {"jpeg": np.stack([frame for frame, _ in drawn])}
    stack |= {
        name: np.stack([smoothed(*pair, side) for pair in drawn]) for name, side in ARMS.items()
    }
    found: dict[str, dict[str, dict[str, float]]] = {}
    for kind in ("png", "jpeg"):
        config = ShardConfig(width=SIDE, height=SIDE, format=kind)
        decode, held = decoder(kind, (SIDE, SIDE, 3)), np.empty_like(stack["jpeg"])
        for frame, place in zip(stack["jpeg"], held, strict=True):
            decode(encode_frame(frame, config), place)
        true = torch.from_numpy(held)
        arms = {name: torch.from_numpy(made) for name, made in stack.items()}
        if kind == "png":  # which holds the frame as it was drawn
            del arms["jpeg"]
        found[kind] = {
            name: {
                "psnr": float(pixels.psnr(made, true).mean()),
                "ssim": float(pixels.ssim(made, true).mean()),
            }
            for name, made in arms.items()
        }
    return found


def main() -> None:
    """Print the limits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--episodes", type=int, default=128, help="one frame of each")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    found: dict[str, Any] = measure(options.episodes)
    for kind, arms in found.items():
        for name, figures in arms.items():
            print(f"{kind} shards, {name}: {figures['psnr']:.2f} dB, SSIM {figures['ssim']:.3f}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""How fast pictures become tokens, tokens pictures, and dreams frames, on this machine.

    python -m benchmarks.vqvae [--model FOLDER] [--frames 300] [--repeats 20] [--json FILE]

Without ``--model`` untrained token dynamics of the ``cpu`` profile's size dream at 64x64; the
weights do not change the time. Rows: the tokenizer's encoder and decoder, one picture and a
batch at a time; the mean dream, keys and values kept and all of a frame's tokens told in one pass;
the dream as it is played, drawn and guided, two passes a frame; and, in the same run, the mean
dream decoded the plain way, one token a pass over the whole history, nothing kept. The goal is 15
dreamed frames a second over 300 frames, decoding of the pictures included. For context: DIAMOND
(arXiv 2405.12399) reports about 10 frames/s for CS:GO on an RTX 3090; another world, size and
machine, so not a comparison.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

GOAL_FPS = 15.0
BATCH, HISTORY = 16, 4
MEAN, PLAYED = "dream, the mean", "dream, as played"
PLAIN = "dream, the mean, a token a pass"
ACTIONS = ("noop", "move_forward", "turn_left", "turn_right")


@dataclass(frozen=True)
class Row:
    """One way to spend time: median over repeats, or over a dream's frames."""

    what: str
    milliseconds: float
    """A call: of one picture, batch or dreamed frame."""
    slowest_ms: float
    """The call slower than 95 of 100 others."""
    frames_per_s: float
    tokens_per_s: float


def timed(calls: int, call: Callable[[], Any]) -> list[float]:
    """Seconds of each of ``calls`` calls, in ascending order."""
    seconds = []
    for _ in range(calls):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)


def untrained() -> Any:
    """Token dynamics of the ``cpu`` profile's size."""
    from iwm.config import resolve_profile
    from iwm.models.registry import create_model

    train = resolve_profile("cpu", environ={})["train"]
    size = {"image_size": [64, 64]}
    tokenizer = {**train["vqvae"]["model"], **size}
    settings = {**train["vqvae-dynamics"]["model"], **size, "vocabulary": list(ACTIONS)}
    del tokenizer["name"]
    return create_model(settings.pop("name"), tokenizer=tokenizer, **settings).eval()


def measure(model: Any, frames: int, repeats: int) -> list[Row]:
    """All rows.

    Args:
        model: token dynamics.
        frames: dreamed for the row of the dream.
        repeats: calls of the tokenizer's rows; three more come first and do not count.
    """
    import torch

    torch.manual_seed(0)
    tokenizer, (height, width) = model.tokenizer, model.tokenizer.config.image_size
    per_frame = tokenizer.grid[0] * tokenizer.grid[1]
    pictures = torch.randint(0, 256, (1, HISTORY, height, width, 3), dtype=torch.uint8)
    batch = torch.randint(0, 256, (BATCH, height, width, 3), dtype=torch.uint8)
    tokens = tokenizer.encode(batch)
    names = max(1, len(model.vocabulary))
    past = torch.randint(names, (1, HISTORY - 1))
    rows = []

    def add(what: str, seconds: list[float], pictures_a_call: int) -> None:
        middle, late = seconds[len(seconds) // 2], seconds[int(0.95 * (len(seconds) - 1))]
        rate = pictures_a_call * len(seconds) / sum(seconds)
        rows.append(Row(what, 1000 * middle, 1000 * late, rate, rate * per_frame))

    with torch.inference_mode():
        subjects: list[tuple[str, Callable[[], Any], int]] = [
            ("encode 1", lambda: tokenizer.encode(batch[:1]), 1),
            (f"encode {BATCH}", lambda: tokenizer.encode(batch), BATCH),
            ("decode 1", lambda: tokenizer.decode(tokens[:1]), 1),
            (f"decode {BATCH}", lambda: tokenizer.decode(tokens), BATCH),
        ]
        for what, call, count in subjects:
            timed(3, call)
            add(what, timed(repeats, call), count)
        from iwm.models.vqvae.dream import LIVELY, dream_uncached

        for what, temperature in ((MEAN, 0.0), (PLAYED, LIVELY)):
            dream = model.start(pictures, past, temperature=temperature)
            actions = iter(torch.randint(names, (frames + 3, 1)))
            steps = map(dream.step, actions)
            timed(3, partial(next, steps))
            add(what, timed(frames, partial(next, steps)), 1)
        asked = torch.randint(names, (1, 1))
        add(PLAIN, timed(1, lambda: dream_uncached(model, pictures, past, asked)), 1)
    return rows


def main() -> None:
    """Measure, print the table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, help="folder of trained token dynamics")
    parser.add_argument("--frames", type=int, default=300, help="frames of the dream")
    parser.add_argument("--repeats", type=int, default=20, help="calls of the tokenizer's rows")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    # Idle compute threads sleep, as in the service.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from iwm.models.registry import load_model

    model = untrained() if options.model is None else load_model(options.model)
    rows = measure(model, max(1, options.frames), max(1, options.repeats))
    print(f"{'':32}{'ms':>9}{'95 % ms':>9}{'frames/s':>10}{'tokens/s':>11}")
    for row in rows:
        print(
            f"{row.what:32}{row.milliseconds:9.1f}{row.slowest_ms:9.1f}{row.frames_per_s:10.2f}"
            f"{row.tokens_per_s:11,.0f}"
        )
    mean, played, plain = (
        next(row for row in rows if row.what == what) for what in (MEAN, PLAYED, PLAIN)
    )
    print(f"the mean: {mean.tokens_per_s / plain.tokens_per_s:,.0f} times the plain way")
    verdict = "pass" if played.frames_per_s >= GOAL_FPS else "miss"
    print(f"goal: {GOAL_FPS:.0f} frames/s over {max(1, options.frames)} dreamed frames: {verdict}")
    if options.json:
        from iwm.files import write_json

        write_json(options.json, [asdict(row) for row in rows])


if __name__ == "__main__":
    main()

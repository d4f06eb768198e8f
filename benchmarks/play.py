"""How fast `iwm play` dreams, and whether its view turns as it is told.

    python -m benchmarks.play [--model FOLDER] [--shards FOLDER] [--frames 300] [--json FILE]

The app is really started, and a visitor asks for one frame after another over its WebSocket, each
when the one before is there, as the page does: keys in, PNGs out. The goal is 15 frames/s on two
cores at 64x64. Then, from held-out starts, `turn_left` is held, and `turn_right`: the picture must
move to the right and to the left (the shift of best correlation between successive frames).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

GOAL_FRAMES_A_SECOND = 15.0
TURNS = {"turn_left": 1, "turn_right": -1}
"""Action -> which way the picture moves: 1 is to the right."""
STARTS, HELD = 24, 8
STRIDE = 997
"""Held-out frames from one start to the next, counted round: a prime, to come by every game."""


@contextmanager
def playing(options: list[str], wait_s: float = 300.0) -> Iterator[str]:
    """The app, really started; yields its WebSocket's address.

    Raises:
        RuntimeError: it ended, or is not up in time; its last line is quoted.
    """
    import httpx

    from pipelines._served import free_port, stop

    port = free_port()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.play", "--port", str(port), *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + wait_s
            while True:
                try:
                    httpx.get(f"http://127.0.0.1:{port}/", timeout=30).raise_for_status()
                    break
                except httpx.HTTPError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        log.seek(0)
                        lines = log.read().decode(errors="replace").strip().splitlines()
                        raise RuntimeError(lines[-1] if lines else "no log") from None
                    time.sleep(0.2)
            yield f"ws://127.0.0.1:{port}/live"
        finally:
            stop(process)


class Visitor:
    """One who plays over the wire."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self.caption = ""
        """Of the start of the last reset."""

    def _picture(self) -> Any:
        import numpy as np
        from PIL import Image

        answer = self._socket.recv()
        if isinstance(answer, str):
            raise RuntimeError(json.loads(answer)["error"])
        return np.asarray(Image.open(io.BytesIO(answer)))

    def reset(self, place: int) -> Any:
        """The last real frame of a start."""
        self._socket.send(json.dumps({"do": "reset", "place": place}))
        answer = json.loads(self._socket.recv())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        self.caption = str(answer["started"]["caption"])
        return self._picture()

    def step(self, action: str) -> Any:
        """The frame after an action."""
        self._socket.send(json.dumps({"do": "step", "action": action}))
        return self._picture()


def speed(visitor: Visitor, actions: list[str], frames: int) -> dict[str, float]:
    """Frames a second over ``frames`` frames, and how long single ones took, in ms."""
    import numpy as np

    visitor.reset(0)
    visitor.step(actions[0])
    took = []
    for frame in range(frames):
        started = time.perf_counter()
        visitor.step(actions[frame // 10 % len(actions)])
        took.append(1000 * (time.perf_counter() - started))
    return {
        "frames": frames,
        "frames_per_s": round(1000 * frames / sum(took), 1),
        "p50_ms": round(float(np.median(took)), 2),
        "p95_ms": round(float(np.percentile(took, 95)), 2),
    }


def turning(visitor: Visitor, action: str) -> dict[str, Any]:
    """Mean shift of the picture in pixels a frame while ``action`` is held, the share of starts
    from which it goes the right way, and the shift from each by its caption.
    """
    import numpy as np

    from iwm.evaluation.optical_flow import horizontal_flow

    way, shifts = TURNS[action], dict[str, float]()
    for place in range(STARTS):
        frames = [visitor.reset(STRIDE * place), *(visitor.step(action) for _ in range(HELD))]
        flow = horizontal_flow(np.stack(frames[:-1]), np.stack(frames[1:]))
        shifts[f"{place}: {visitor.caption}"] = round(float(flow.mean()), 2)
    right = [way * shift > 0 for shift in shifts.values()]
    return {
        "mean_shift": round(float(np.mean(list(shifts.values()))), 2),
        "share_right_way": round(float(np.mean(right)), 3),
        "starts": STARTS,
        "shifts": shifts,
    }


def measure(options: list[str], vocabulary: tuple[str, ...], frames: int) -> dict[str, Any]:
    """Everything, from one running app."""
    from websockets.sync.client import connect

    with playing(options) as address, connect(address, max_size=2**24) as socket:
        visitor = Visitor(socket)
        return {
            "cores": len(os.sched_getaffinity(0)),
            "speed": speed(visitor, list(vocabulary), frames),
            "turns": {name: turning(visitor, name) for name in TURNS if name in vocabulary},
        }


def main() -> None:
    """Measure and print."""
    from iwm.errors import one_line_errors
    from iwm.models.saving import read_config
    from pipelines._stage import SHARDS, quiet
    from pipelines.play import DYNAMICS

    quiet()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=DYNAMICS)
    parser.add_argument("--shards", type=Path, default=SHARDS)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with one_line_errors():
        settings = read_config(given.model, "vqvae-dynamics")["settings"]
        options = ["--model", str(given.model), "--shards", str(given.shards), "--device", "cpu"]
        found = measure(options, tuple(settings["vocabulary"]), given.frames)
    told = found["speed"]
    print(
        f"{told['frames_per_s']} frames/s over {told['frames']} frames on {found['cores']} cores "
        f"(goal {GOAL_FRAMES_A_SECOND:g}); p50 {told['p50_ms']} ms, p95 {told['p95_ms']} ms"
    )
    for action, turn in found["turns"].items():
        print(
            f"{action} held for {HELD} frames: the picture moves {turn['mean_shift']:+.2f} pixels "
            f"a frame; the right way from {turn['share_right_way']:.0%} of {turn['starts']} starts"
        )
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""How long one plan takes: 300 candidates x horizon 8 x 10 iterations, on this machine.

    python -m benchmarks.planning [--model FOLDER] [--repeats 7] [--json FILE]

Without ``--model`` an untrained action model of the ``cpu`` profile's size plans; the weights
change the time only through how fast the search settles. The goal is under 300 ms on two
cores. Beside iCEM on shared beginnings, the default, stand its parts: without the memory of
repeated sequences; CEM, whose population does not shrink; and the plain rollout of all 3,000
sequences in ten batches, nothing shared. For context: LeWM (arXiv 2603.19312) reports 0.98 s a
plan (300 candidates, 30 iterations, horizon 5, on a GPU), DINO-WM there 47 s. Other budgets and
machines: not a comparison of the methods.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

GOAL_MS = 300.0
CANDIDATES, HORIZON, ITERATIONS, FRAMES = 300, 8, 10, 4
ACTIONS = ("noop", "move_forward", "move_backward", "turn_left", "turn_right")


@dataclass(frozen=True)
class Row:
    """One way of planning: median over plans."""

    what: str
    milliseconds: float
    cpu_ms: float
    """Processor time: of all cores, and untouched by what else the machine does."""
    candidates_per_s: float
    """Sequences considered a second."""
    rolled_out: int
    """Distinct sequences that the model rolled out."""
    model_share: float
    """Of the time, in the model."""


def plain(model: Any, z_cls: Any, history: Any) -> tuple[int, int, float]:
    """The budget's rollouts alone, nothing shared: (considered, rolled out, seconds in model)."""
    import torch

    from iwm.models.action import History

    started = time.perf_counter()
    expanded = History(
        history.z_cls.expand(CANDIDATES, -1, -1), history.action.expand(CANDIDATES, -1, -1)
    )
    for _ in range(ITERATIONS):
        ids = torch.randint(len(ACTIONS), (CANDIDATES, HORIZON))
        model.rollout(z_cls.expand(CANDIDATES, -1), model.action_vectors(ids), expanded)
    return CANDIDATES * ITERATIONS, CANDIDATES * ITERATIONS, time.perf_counter() - started


def measure(folder: Path | None, repeats: int) -> list[Row]:
    """All rows, their plans taken in turns.

    Args:
        folder: a trained action model, or ``None``.
        repeats: plans of each kind; one more comes first and does not count.
    """
    import torch

    from iwm.models.action import History
    from iwm.models.registry import create_model, load_model
    from iwm.planning.config import SolverConfig
    from iwm.planning.costs import GoalLatent
    from iwm.planning.dynamics import Discrete, ModelDynamics
    from iwm.planning.planner import Planner

    torch.manual_seed(0)
    if folder is None:
        model: Any = create_model(
            "action",
            image_size=[64, 64],
            vocabulary=list(ACTIONS),
            history=FRAMES,
            encoder={"patch": 16, "width": 128, "depth": 2, "heads": 4, "pool": "flat"},
            dynamics={"width": 128, "depth": 3, "heads": 4, "patch_depth": 2},
        )
    else:
        model = load_model(folder)
    model.eval()
    names = tuple(model.vocabulary[: len(ACTIONS)])
    space = Discrete(names)
    frames = torch.randint(0, 256, (FRAMES + 1, 3, *model.config.image_size), dtype=torch.uint8)
    latents = model.encode(frames)[0]
    taken = model.action_vectors(torch.randint(len(names), (1, FRAMES - 1)))
    history = History(latents[None, : FRAMES - 1], taken)
    dynamics = ModelDynamics(model, space, latents[FRAMES - 1], history)
    cost = GoalLatent(latents[FRAMES])
    budget: dict[str, Any] = {
        "candidates": CANDIDATES,
        "horizon": HORIZON,
        "iterations": ITERATIONS,
    }

    def planned(solver: Any, remember: bool) -> Callable[[int], tuple[int, int, float]]:
        def once(turn: int) -> tuple[int, int, float]:
            planner = Planner(space, SolverConfig(solver=solver, **budget), turn, remember=remember)
            plan = planner.plan(dynamics, cost)
            return plan.candidates, plan.rollouts, plan.dynamics_s

        return once

    subjects: dict[str, Callable[[int], tuple[int, int, float]]] = {
        "iCEM": planned("icem", True),
        "iCEM, nothing remembered": planned("icem", False),
        "CEM": planned("cem", True),
        "random shooting": planned("random_shooting", True),
        "plain rollouts alone": lambda _: plain(model, latents[FRAMES - 1 : FRAMES], history),
    }
    found: dict[str, list[tuple[float, float, int, int, float]]] = {name: [] for name in subjects}
    for turn in range(repeats + 1):
        for name, subject in subjects.items():
            started, worked = time.perf_counter(), time.process_time()
            considered, rolled_out, inside = subject(turn)
            seconds, cpu = time.perf_counter() - started, time.process_time() - worked
            if turn:  # the first warms up
                found[name].append((seconds, cpu, considered, rolled_out, inside))
    rows = []
    for name, plans in found.items():
        seconds, cpu, considered, rolled_out, inside = sorted(plans)[len(plans) // 2]
        share = min(1.0, inside / seconds)
        rows.append(Row(name, 1000 * seconds, 1000 * cpu, considered / seconds, rolled_out, share))
    return rows


def main() -> None:
    """Measure, print the table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, help="folder of a trained action model")
    parser.add_argument("--repeats", type=int, default=7, help="plans of each kind; the median")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    # Idle compute threads sleep, as in the service.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    rows = measure(options.model, max(1, options.repeats))
    heads = ("ms a plan", 10), ("CPU ms", 8), ("sequences/s", 13), ("rolled out", 12)
    print(" " * 26 + "".join(f"{head:>{width}}" for head, width in heads) + "  in the model")
    for row in rows:
        print(
            f"{row.what:26}{row.milliseconds:10.0f}{row.cpu_ms:8.0f}{row.candidates_per_s:13,.0f}"
            f"{row.rolled_out:12,}{row.model_share:14.0%}"
        )
    verdict = "pass" if rows[0].milliseconds < GOAL_MS else "miss"
    print(f"goal: iCEM under {GOAL_MS:.0f} ms: {verdict}")
    print("for context: LeWM reports 980 ms (300 x 30, horizon 5, GPU), arXiv 2603.19312")
    if options.json:
        from iwm.files import write_json

        write_json(options.json, [asdict(row) for row in rows])


if __name__ == "__main__":
    main()

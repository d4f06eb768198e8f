"""Agents that share out tasks on a grid: silent, with one learned bit, with intentions, with all.

    python -m benchmarks.communication [--boards 10x2 15x2 10x4] [--seeds 1] [--quick] [--json FILE]

The end-to-end check of the embodied layer, after "Communicating Plans, Not Percepts" (arXiv
2508.02912), which reports on 10x10 with two agents 99.9 % with intentions, 30.8 % with one learned
bit and 0 % with nothing; on 15x15 96.5, 12.2 and 0 %. What it leaves open we chose
(docs/embodied.md): the figures stand beside each other, not against each other.

A board is ``SIZExAGENTS``; one cell in five holds a task. Every task takes two agents, and a game
is won when all agents are at work in pairs as soon as a central planner, who sees everything, could
have had them there. For every board, arm and seed the same network is trained for the same number
of games; the policies of a seed then play the same new boards. Intervals are 95 %: Wilson's for a
share of games over all seeds, bootstrapped over boards for a difference. Intentions are real
messages: compressed to at most 49 bytes of text, and read from them.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

ARMS = ("silent", "bit", "intention", "full")
NAMES = {
    "silent": "no communication",
    "bit": "one learned bit",
    "intention": "intentions",
    "full": "everything told",
}
PAPER = {
    "10x2": {"silent": 0.0, "bit": 0.308, "intention": 0.999},
    "15x2": {"silent": 0.0, "bit": 0.122, "intention": 0.965},
}
GOAL = 0.95
SLACKS = (0.0, 0.25, 0.5, 1.0)
TASK_EVERY = 5


def wilson(successes: int, n: int) -> dict[str, Any]:
    """A share with Wilson's 95 % interval (1927), which holds near 0 and 1, too."""
    z = 1.959964
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return {"mean": share, "low": max(0.0, middle - half), "high": min(1.0, middle + half), "n": n}


def trial(
    board: str, seeds: int, updates: int, games: int, tests: int, arms: tuple[str, ...]
) -> dict[str, Any]:
    """Train and test all arms on one kind of board.

    Args:
        board: ``SIZExAGENTS``.
        seeds: policies of each arm.
        updates: of one policy.
        games: of one update; for larger teams in proportion fewer.
        tests: boards that every policy plays; teams of more than four play a fifth, since their
            joint plans take much memory.
        arms: which.
    """
    import numpy as np
    import torch

    from iwm.agents.grid.config import GridConfig, LearnConfig
    from iwm.agents.grid.learning import imagination_of, learn, measure
    from iwm.agents.grid.messages import IntentionBook
    from iwm.evaluation.statistics import bootstrap_mean

    size, agents = (int(part) for part in board.split("x"))
    config = GridConfig(size=size, agents=agents, tasks=size * size // TASK_EVERY)
    batch = max(8, 2 * games // agents)
    tests = tests if agents <= 4 else max(1, tests // 5)
    imagination, exact = imagination_of(config, LearnConfig())
    book = IntentionBook(imagination)
    rows: dict[str, Any] = {}
    won: dict[str, Any] = {}
    for arm in arms:
        began, playing = time.process_time(), 0.0
        played = []
        for seed in range(seeds):
            settings = LearnConfig(updates=updates, games=batch, seed=seed)
            team = learn(config, settings, arm, book)  # type: ignore[arg-type]
            learned = time.process_time()
            played.append(measure(config, team, tests, seed))
            playing += time.process_time() - learned
        success = torch.stack([one.won() for one in played])
        won[arm] = success.numpy().astype(float)
        finished = torch.stack([one.steps for one in played]).double()
        planned = torch.stack([one.planned for one in played]).double()
        time_used = torch.where(finished < 0, float("nan"), finished / planned).nanmean()
        rows[arm] = {
            "success": wilson(int(success.sum()), success.numel()),
            "agents_in_time": float(torch.stack([one.busy for one in played]).double().mean()),
            "seeds": success.double().mean(1).tolist(),
            "times_the_planner": float(time_used),
            "by_slack": {
                str(slack): float(torch.stack([one.won(slack) for one in played]).double().mean())
                for slack in SLACKS
            },
            "cpu_s_training": (time.process_time() - began - playing) / seeds,
        }
        figure = rows[arm]["success"]
        print(
            f"{board:6} {NAMES[arm]:17} {figure['mean']:7.1%} "
            f"[{figure['low']:.1%}, {figure['high']:.1%}]   seeds "
            + " ".join(f"{share:.1%}" for share in rows[arm]["seeds"])
            + f"   {rows[arm]['cpu_s_training']:.0f} s",
            flush=True,
        )
    sizes = [len(text.encode()) for text in book.texts]
    found: dict[str, Any] = {
        "board": board,
        "tasks": config.tasks,
        "updates": updates,
        "games": batch,
        "tests": tests,
        "planned_steps": float(np.mean(planned.numpy())),
        "transitions_exact": exact,
        "arms": rows,
    }
    if sizes:
        found["messages"] = {"different": len(sizes), "bytes_max": max(sizes)}
    for other in ("silent", "bit"):
        if "intention" in won and other in won:
            apart = (won["intention"] - won[other]).flatten()
            found[f"intention_minus_{other}"] = bootstrap_mean(apart, np.arange(len(apart)))
    return found


def table(found: list[dict[str, Any]]) -> None:
    """Print all boards, the paper's figures beside ours, then how many agents were in time."""
    print("\ngames won")
    print(f"{'board':6}{'tasks':>6}  " + "".join(f"{NAMES[arm]:>26}" for arm in ARMS))
    for one in found:
        cells = []
        for arm in ARMS:
            figure = one["arms"].get(arm, {}).get("success")
            text = "-" if figure is None else "{mean:.1%} [{low:.1%}, {high:.1%}]".format(**figure)
            cells.append(f"{text:>26}")
        print(f"{one['board']:6}{one['tasks']:6}  " + "".join(cells))
        if one["board"] in PAPER:
            paper = PAPER[one["board"]]
            said = "".join(f"{paper[arm]:>26.1%}" if arm in paper else " " * 26 for arm in ARMS)
            print(f"{'  paper':12}  " + said)
    print("agents at work when the planner would have had the team at work")
    for one in found:
        shares = [one["arms"].get(arm, {}).get("agents_in_time") for arm in ARMS]
        cells = ["-" if share is None else f"{share:.1%}" for share in shares]
        print(f"{one['board']:12}  " + "".join(f"{cell:>26}" for cell in cells))
    first = found[0]
    share = first["arms"].get("intention", {}).get("success", {}).get("mean", 0.0)
    verdict = "pass" if share >= GOAL else "miss"
    print(f"goal: intentions win {GOAL:.0%} of games on {first['board']}: {share:.1%}, {verdict}")


def main() -> None:
    """Train, test, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--boards", nargs="+", default=["10x2", "15x2", "10x4", "10x10"])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=1, help="policies of each arm")
    parser.add_argument("--updates", type=int, default=60, help="of one policy")
    parser.add_argument("--games", type=int, default=128, help="of one update, two agents")
    parser.add_argument(
        "--tests", type=int, default=1000, help="boards to play; a fifth for teams of ten"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch; the work is small")
    parser.add_argument("--quick", action="store_true", help="10x2, one seed, half of training")
    parser.add_argument("--json", type=Path, default=Path("reports/communication.json"))
    options = parser.parse_args()
    if options.quick:
        options.boards, options.seeds, options.updates = ["10x2"], 1, options.updates // 2
    import torch

    from iwm.files import write_json

    torch.set_num_threads(options.threads)
    found = []
    for board in options.boards:
        budget = options.updates, options.games, options.tests
        found.append(trial(board, options.seeds, *budget, tuple(options.arms)))
        write_json(options.json, found)
    table(found)


if __name__ == "__main__":
    main()

"""The IWM paper's claims on small models in the sprite world.

    python -m benchmarks.paper_claims [--quick] [--workers N] [--models DIR] [--report FILE]

Trains every arm with several seeds, measures them, and decides each claim from the intervals over
seeds. Stopped at any moment, the same command goes on from there. docs/paper.md explains the rows.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.paper_claims.arms import ARMS, FULL, QUICK, Scale
from benchmarks.paper_claims.claims import CLAIMS, Results, interval
from benchmarks.paper_claims.measure import worker
from iwm.errors import one_line_errors
from iwm.evaluation.statistics import chance_mrr
from iwm.files import write_json, write_text
from iwm.gameplay.executor import process_pool
from iwm.progress import Progress
from iwm.training.tracking import read_history

_POLL_S = 2.0
_COLUMNS = ("mrr", "mrr_cls_only", "mrr_patches", "probe", "effective_rank")


def run(scale: Scale, models: Path, workers: int) -> Results:
    """Train and measure every model of the experiment.

    Args:
        scale: its size.
        models: folder of one folder a model; what is finished there is not done again.
        workers: models at a time, each on one thread.

    Raises:
        TrainingError: a model's loss is not finite, or the run was asked to stop.
    """
    jobs: list[dict[str, Any]] = [
        {
            "arm": arm,
            "seed": seed,
            "scale": scale,
            "folder": models / f"{arm.name}-{seed}",
            "tuned": arm.name == "feature",
        }
        for seed in range(scale.seeds)
        for arm in ARMS
    ]
    total = len(jobs) * scale.steps
    with (
        process_pool(workers) as pool,
        Progress("paper claims", total, "steps", initial=_taken(jobs)) as progress,
    ):
        futures: list[Future[dict[str, float]]] = [pool.submit(worker, job) for job in jobs]
        left = set(futures)
        try:
            while left:
                done, left = wait(left, _POLL_S, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                finished = len(jobs) - len(left)
                # A model that is trained anew (other code, other settings) begins at 0 again.
                taken = max(0, _taken(jobs) - progress.done)
                progress.advance(taken, f"{finished}/{len(jobs)} models")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            while children := multiprocessing.active_children():
                for child in children:
                    child.terminate()  # the trainer saves, then stops
                    child.join(1)
            raise
    results: dict[str, list[dict[str, float]]] = {arm.name: [] for arm in ARMS}
    for job, future in zip(jobs, futures, strict=True):
        results[job["arm"].name].append(future.result())
    return results


def _taken(jobs: list[dict[str, Any]]) -> int:
    """Steps that the models' histories hold."""
    taken = 0
    for job in jobs:
        path = job["folder"] / "history.jsonl"
        try:
            taken += int(read_history(path)[-1]["step"])
        except (OSError, ValueError, IndexError, KeyError):
            continue  # not begun, or a line half written
    return taken


def report(results: Results, scale: Scale) -> dict[str, Any]:
    """Figures of every arm and the verdict on every claim, as plain values."""
    chance = chance_mrr(scale.bank)
    arms = {}
    for arm in ARMS:
        rows = results[arm.name]
        names = rows[0].keys()
        arms[arm.name] = {
            **asdict(arm),
            **{name: interval([row[name] for row in rows]) for name in names},
        }
        arms[arm.name]["paper"] = arm.paper
    return {
        "scale": asdict(scale),
        "chance_mrr": chance,
        "arms": arms,
        "claims": {claim.name: claim.judge(results, chance) for claim in CLAIMS},
    }


def page(found: dict[str, Any]) -> str:
    """The report as Markdown."""
    scale = found["scale"]
    lines = [
        "# The IWM paper's claims on small models",
        "",
        f"{scale['seeds']} seeds an arm, {scale['epochs']} epochs of {scale['pictures']} pictures "
        f"of the sprite world; mean [95 % interval over seeds]. Chance MRR is "
        f"{found['chance_mrr']:.3f}.",
        "",
        "| arm | MRR | paper's MRR | MRR, CLS only | MRR, patches | probe R2 | effective rank |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in found["arms"].values():
        cells = [_shown(arm[name], 1 if name == "effective_rank" else 3) for name in _COLUMNS]
        cells.insert(1, f"{arm['paper']:.2f}")
        lines.append(f"| {arm['label']} | {' | '.join(cells)} |")
    tuned = found["arms"]["feature"]
    lines += [
        "",
        f"Fine-tuned on the frozen encoder, R2: pretrained predictor "
        f"{_shown(tuned['tuned_pretrained'])}, random predictor {_shown(tuned['tuned_random'])}.",
        "",
        "| claim | number | here | must be | paper | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for claim in found["claims"].values():
        must = f"{claim['must_be']} {claim['bound']:.3f}"
        lines.append(
            f"| {claim['claim']} | {claim['measured']} | {_shown(claim['figure'])} | {must} "
            f"| {claim['paper']} | **{claim['verdict']}** |"
        )
    return "\n".join([*lines, ""])


def _shown(figure: dict[str, float], digits: int = 3) -> str:
    low, high = (f"{figure[end]:.{digits}f}" for end in ("low", "high"))
    return f"{figure['mean']:.{digits}f} [{low}, {high}]"


def main() -> None:
    """Parse the command line, run, print the tables and write them."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper_claims",
        description="The IWM paper's claims on small models in the sprite world.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer seeds, shorter training")
    parser.add_argument("--seeds", type=int, help="models an arm, 2 or more")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="models at a time")
    parser.add_argument("--models", type=Path, default=Path("artifacts/paper_claims"))
    parser.add_argument("--report", type=Path, default=Path("reports/paper_claims.json"))
    options = parser.parse_args()
    scale = QUICK if options.quick else FULL
    if options.seeds is not None:
        if options.seeds < 2:
            parser.error(f"--seeds {options.seeds}: an interval needs at least 2")
        scale = replace(scale, seeds=options.seeds)
    if options.workers < 1:
        parser.error(f"--workers {options.workers}: at least 1")
    # Before a worker imports torch: one thread each, and waiting ones sleep.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    folder = options.models / ("quick" if options.quick else "full")
    try:
        with one_line_errors():
            found = report(run(scale, folder, options.workers), scale)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
    text = page(found)
    write_json(options.report, found)
    write_text(options.report.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()

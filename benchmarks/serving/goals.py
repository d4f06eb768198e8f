"""The goals, and whether a run met them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from benchmarks.serving.bounds import Bound
from benchmarks.serving.subjects import LIT, LIT_BATCHES, MIXED, OURS, PLAIN

OVERHEAD_MS = {"encode, raw": 2.0, "predict": 1.0}
OFFLINE_SHARE = 0.85
FASTER_THAN_PLAIN = 10.0
TAIL = 4.0
LATENCY_MS = {"encode": 10.0, "predict": 5.0, "rollout": 30.0, "plan": 400.0}


@dataclass(frozen=True)
class Figure:
    """One subject at one call with so many clients; milliseconds, answers a second."""

    model: str
    subject: str
    call: str
    clients: int
    p50: float
    p99: float
    throughput: float
    answered: int
    refused: int
    subject_share: float
    """Of all cores."""
    clients_share: float
    """Of all cores, too."""


@dataclass(frozen=True)
class Verdict:
    """One goal of one model."""

    model: str
    goal: str
    value: str
    met: bool


Figures = Mapping[tuple[str, str, int], Figure]
"""(subject, call, clients) of one model; the bare engine is subject "engine" with 1 client."""


def judge(
    model: str,
    figures: Figures,
    offline: Mapping[str, Mapping[int, float]],
    bounds: Mapping[str, Bound],
    *,
    small: bool,
) -> list[Verdict]:
    """All verdicts of one model, in the order of the goals, on the calls that were measured.

    Args:
        model: its name.
        figures: what was measured.
        offline: call -> size of a batch -> answers a second of the bare engine.
        bounds: call -> what sixteen clients can get of it at most.
        small: whether the latency goals of the small model hold for it.
    """
    return [
        *_overhead(model, figures),
        *_throughput(model, figures, offline, bounds),
        *_tail(model, figures),
        *_beside_plain(model, figures),
        *_beside_litserve(model, figures, bounds),
        *(_latency(model, figures) if small else ()),
    ]


def _overhead(model: str, figures: Figures) -> Iterator[Verdict]:
    for call, most in OVERHEAD_MS.items():
        if (OURS, call, 1) not in figures:
            continue
        bare = figures["engine", call.partition(",")[0], 1].p50
        value = figures[OURS, call, 1].p50 - bare
        goal = f"/{call}: p50 over the bare engine <= {most:g} ms"
        yield Verdict(model, goal, f"{value:.2f} ms", value <= most)
    if all((OURS, call, 1) in figures for call in ("predict", "rollout")):
        quick, steps = figures[OURS, "predict", 1].p50, figures[OURS, "rollout", 1].p50
        yield Verdict(
            model,
            "/rollout k=5 costs less than 5 x /predict",
            f"{steps / quick:.2f} x",
            steps < 5 * quick,
        )


def _throughput(
    model: str,
    figures: Figures,
    offline: Mapping[str, Mapping[int, float]],
    bounds: Mapping[str, Bound],
) -> Iterator[Verdict]:
    for call in bounds:
        rate, best = figures[OURS, call, 16].throughput, max(offline[call].values())
        goal = f"/{call}, 16 clients: >= {OFFLINE_SHARE:.0%} of the best offline batch"
        most = bounds[call].answers
        value = (
            f"{rate / best:.0%}; the bound is {most / best:.0%}, {rate / most:.0%} of it reached"
        )
        yield Verdict(model, goal, value, rate >= OFFLINE_SHARE * best)


def _tail(model: str, figures: Figures) -> Iterator[Verdict]:
    for call in ("encode", "predict", "rollout", MIXED):
        if (OURS, call, 16) not in figures:
            continue
        ours = figures[OURS, call, 16]
        times = ours.p99 / ours.p50
        goal = f"/{call}, 16 clients: p99 <= {TAIL:g} x p50"
        if call == MIXED:
            goal = goal.removeprefix("/")
        yield Verdict(model, goal, f"{times:.1f} x", times <= TAIL)


def _beside_plain(model: str, figures: Figures) -> Iterator[Verdict]:
    for call in ("predict", "rollout"):
        if (PLAIN, call, 1) not in figures:
            continue
        times = figures[PLAIN, call, 1].p50 / figures[OURS, call, 1].p50
        goal = f"/{call}: p50 at least {FASTER_THAN_PLAIN:g} x faster than plain FastAPI"
        yield Verdict(model, goal, f"{times:.1f} x", times >= FASTER_THAN_PLAIN)


def _beside_litserve(model: str, figures: Figures, calls: Iterable[str]) -> Iterator[Verdict]:
    for call in calls:
        for clients in (1, 16):
            others = [
                figures[name, call, clients]
                for name in (LIT, LIT_BATCHES)
                if (name, call, clients) in figures
            ]
            if not others:
                continue
            ours = figures[OURS, call, clients]
            latency = min(other.p50 for other in others) / ours.p50
            most = max(other.throughput for other in others)
            rate = ours.throughput / most if most else math.inf
            yield Verdict(
                model,
                f"/{call}, {clients} client{'s' * (clients > 1)}: ahead of LitServe",
                f"p50 {latency:.2f} x, throughput {rate:.2f} x",
                latency > 1 and rate > 1,
            )


def _latency(model: str, figures: Figures) -> Iterator[Verdict]:
    for call, most in LATENCY_MS.items():
        if (OURS, call, 1) in figures:
            value = figures[OURS, call, 1].p50
            yield Verdict(model, f"/{call}: p50 <= {most:g} ms", f"{value:.1f} ms", value <= most)

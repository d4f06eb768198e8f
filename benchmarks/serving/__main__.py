"""Our service beside other ways to serve the same weights, in one run, on the same cores.

    python -m benchmarks.serving [--quick] [--models small vit-b16] [--seconds 4] [--turns 3]
                                 [--calls encode predict rollout] [--cores 2] [--json FILE]

For each model, in turns: (a) the bare engine, on pixels, no decoding; (b) our service as
``iwm serve`` runs it; (c) LitServe over the same engine, without and with its own batching; (d) a
plain FastAPI application that does what the older service did: PIL, torchvision transforms, one
image at a time, a zero for every patch token on ``/predict``; and HTTP alone, uvicorn with nothing
behind it: the most that these clients can get. Requests are JSON as older clients send them;
``encode, raw`` is our service's JPEG body and binary answer, ``mixed`` all three in turn. One and
16 clients, in this process, on the same cores as the servers, of which only the one in its lap is
awake: ``cores`` and ``asking`` are the shares of all cores that a subject and its clients took.
Below the table is what 16 clients can get at most (:mod:`benchmarks.serving.bounds`). Every answer
is compared with the engine's before anything is timed.

Models: ``small`` is the ready-made doom-tiny (or ``--small FOLDER``); ``vit-b16`` is the core model
at its full size with random weights. ``--quick`` is a look at the machinery, on the small model.
LitServe is the extra ``bench``; without it its rows are left out.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving import CALLS

BATCHES = (1, 2, 4, 8, 16, 32)
CROWD = 16
CLIENTS = (1, CROWD)
WITH = {"plan": (1,), "mixed": (CROWD,)}
"""Clients of calls that are not asked with each of :data:`CLIENTS`."""
MODELS = ("small", "vit-b16")
ROUNDS = 3
"""A lap in which everybody is answered once or twice says little of a rate: none is shorter than
so many of the slowest answers of its warm-up."""


def folder_of(name: str, small: Path | None, scratch: Path) -> Path:
    """The weights of a model, made where they are random."""
    from iwm import zoo
    from iwm.models.registry import create_model

    if name == "small":
        return small or zoo.path("doom-tiny")
    import torch

    torch.manual_seed(0)
    model: Any = create_model("iwm")
    model.save_pretrained(scratch / name)
    return scratch / name


def check(inputs: Any, engine: Any, server: Any) -> None:
    """Every call of a server that computes answers the engine's latents.

    Raises:
        RuntimeError: it does not.
    """
    import numpy as np
    import orjson

    from benchmarks.serving.subjects import NOTHING, PLAIN
    from benchmarks.serving.traffic import once

    if server.name == NOTHING:
        return
    keys = ("z", "z_cls", "z_cls_pred", "z_cls_seq")
    for call in CALLS:
        answer = orjson.loads(once(inputs.request(server.name, server.port, call)))
        found = np.asarray(next(answer[key] for key in keys if key in answer), np.float32)
        wanted = inputs.bare(engine, call)[0]
        # The plain application resizes in its own way and predicts from zero patches.
        if found.shape != wanted.shape or (
            server.name != PLAIN and not np.allclose(found, wanted, atol=2e-3)
        ):
            raise RuntimeError(f"{server.name}: /{call} does not answer the engine's latents")


def asked_of(server: str, call: str, *, plans: bool, mixed: bool) -> Iterator[str]:
    """What a server is asked in the laps of a call: ours answers more than the others.

    Args:
        server: its name.
        call: of the three that all answer.
        plans: whether the model can plan.
        mixed: whether all three are measured.
    """
    from benchmarks.serving.subjects import MIXED, OURS

    yield call
    if server == OURS and call == "encode":
        yield "encode, raw"
    if server == OURS and call == "rollout":
        yield from (["plan"] if plans else []) + ([MIXED] if mixed else [])


@dataclass(frozen=True)
class Measured:
    """Of one model: figures, verdicts, bounds by call; call -> batch -> answers a second of the
    bare engine.
    """

    figures: list[Any]
    verdicts: list[Any]
    bounds: dict[str, Any]
    offline: dict[str, dict[int, float]]


def measure(name: str, folder: Path, options: argparse.Namespace) -> Measured:
    """Every subject at every call of one model, in turns."""
    import httpx
    import torch

    from benchmarks.serving.bounds import Bound, Costs
    from benchmarks.serving.goals import Figure, judge
    from benchmarks.serving.subjects import (
        MIXED,
        NOTHING,
        OURS,
        PLAIN,
        Inputs,
        bare_lap,
        decoding_s,
        servers,
    )
    from benchmarks.serving.traffic import Sample, lap
    from iwm.progress import Progress
    from iwm.serving.config import Limits
    from iwm.serving.engine import Engine

    calls = tuple(call for call in CALLS if call in options.calls)
    torch.set_num_threads(options.cores)
    engine = Engine.load(folder, "cpu")
    inputs = Inputs.of(engine)
    samples: dict[tuple[str, str, int], Sample] = {}
    rates: dict[str, dict[int, float]] = {call: {} for call in calls}
    crowds = {call: Sample() for call in calls}
    with (
        tempfile.TemporaryDirectory(prefix="iwm-serving-") as scratch,
        servers(folder, Path(scratch), options.cores, Limits().max_batch) as running,
    ):
        for server in running:
            with server.running():
                check(inputs, engine, server)
                if server.name == OURS:
                    url = f"http://127.0.0.1:{server.port}/openapi.json"
                    plans = "/plan" in httpx.get(url).json()["paths"] and bool(engine.vocabulary)
        laps = {
            call: [
                (server, each, clients)
                for server in running
                for each in asked_of(server.name, call, plans=plans, mixed=calls == CALLS)
                for clients in ((CROWD,) if server.name == NOTHING else WITH.get(each, CLIENTS))
            ]
            for call in calls
        }
        total = options.turns * sum(1 + len(each) + len(BATCHES) for each in laps.values())
        with Progress(f"serving {name}", total, "laps") as progress:
            for call in calls * options.turns:
                bare = bare_lap(engine, inputs, call, options.seconds)
                samples.setdefault(("engine", call, 1), Sample()).add(bare)
                progress.advance(1, f"the bare engine's {call}")
                for server, each, clients in laps[call]:
                    names = CALLS if each == MIXED else (each,)
                    asked = [inputs.request(server.name, server.port, it) for it in names]
                    with server.running():
                        # Warms up; who answers one at a time is as warm after one.
                        plain = server.name == PLAIN
                        warm = lap(asked, 1 if plain else clients, options.seconds / 4)
                        seconds = options.seconds
                        if not plain and warm.milliseconds:
                            slowest = max(warm.milliseconds) / 1000
                            seconds = max(seconds, ROUNDS * slowest)
                        spent = server.spent_s()
                        seen = lap(asked, clients, seconds)
                        seen.subject_s = server.spent_s() - spent
                    samples.setdefault((server.name, each, clients), Sample()).add(seen)
                    progress.advance(1, f"{server.name}: {each}, {clients} clients")
                for batch in BATCHES:
                    alone = bare_lap(engine, inputs, call, options.seconds / 2, batch, ROUNDS)
                    rates[call][batch] = max(rates[call].get(batch, 0.0), alone.throughput)
                    if batch == CROWD:
                        crowds[call].add(alone)
                    progress.advance(1, f"the bare engine's {call} in batches of {batch}")
    figures = {
        key: Figure(
            name,
            *key,
            # Who answered nobody in time has no latency.
            *(sample.percentile(share) if sample.milliseconds else math.inf for share in (50, 99)),
            sample.throughput,
            len(sample.milliseconds),
            sum(sample.refused.values()),
            sample.subject_s / sample.seconds / options.cores,
            sample.clients_s / sample.seconds / options.cores,
        )
        for key, sample in samples.items()
    }
    bounds = {}
    for call in calls:
        crowd, http = crowds[call], samples[NOTHING, call, CROWD]
        costs = Costs(
            engine=crowd.subject_s / len(crowd.milliseconds),
            decoding=decoding_s(engine, inputs, options.seconds / 4) if call == "encode" else 0.0,
            http=http.subject_s / len(http.milliseconds),
            clients=http.clients_s / len(http.milliseconds),
        )
        bounds[call] = Bound.of(costs, options.cores, rates[call][CROWD])
    verdicts = judge(name, figures, rates, bounds, small=name == "small")
    return Measured(list(figures.values()), verdicts, bounds, rates)


def table(rows: Sequence[Any]) -> str:
    """Figures as text, calls together."""
    lines = [
        f"{'model':10}{'call':14}{'subject':20}{'clients':>8}{'p50 ms':>10}{'p99 ms':>10}"
        f"{'answers/s':>11}{'refused':>9}{'cores':>7}{'asking':>7}"
    ]
    order = {"encode": 0, "encode, raw": 1, "predict": 2, "rollout": 3, "mixed": 4, "plan": 5}
    for row in sorted(rows, key=lambda row: (row.model, order[row.call], row.clients)):
        lines.append(
            f"{row.model:10}{row.call:14}{row.subject:20}{row.clients:8}{row.p50:10.2f}"
            f"{row.p99:10.2f}{row.throughput:11,.1f}{row.refused:9}"
            f"{row.subject_share:7.0%}{row.clients_share:7.0%}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--calls", nargs="+", choices=CALLS, default=list(CALLS))
    parser.add_argument("--small", type=Path, help="folder of the small model")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="of one lap; slow calls take longer ones"
    )
    parser.add_argument("--turns", type=int, default=3, help="laps of each kind")
    parser.add_argument("--cores", type=int, default=2, help="cores, and torch threads, of all")
    parser.add_argument("--quick", action="store_true", help="the small model, laps of 0.3 s")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args(arguments)
    if options.quick:
        options.models, options.seconds, options.turns = ["small"], 0.3, 1
    # The servers are ended on the way out, which a signal's own end would not take.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    cores = sorted(os.sched_getaffinity(0))[: options.cores]
    options.cores = len(cores)
    os.sched_setaffinity(0, cores)  # children inherit it
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    rows: list[Any] = []
    verdicts: list[Any] = []
    models: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory(prefix="iwm-models-") as scratch:
        for name in options.models:
            folder = folder_of(name, options.small, Path(scratch))
            models[name] = found = measure(name, folder, options)
            rows += found.figures
            verdicts += found.verdicts
    print(f"{options.cores} cores, {options.turns} laps of {options.seconds:g} s")
    print(table(rows))
    for name, found in models.items():
        for call, by_batch in found.offline.items():
            each = ", ".join(f"{batch}: {rate:,.1f}/s" for batch, rate in by_batch.items())
            print(f"{name}: the bare engine's {call} in batches of {each}")
            print(f"{name}: {CROWD} clients' {call}: {found.bounds[call]}")
    for verdict in verdicts:
        print(
            f"{'pass' if verdict.met else 'MISS'}  {verdict.model}: {verdict.goal}: {verdict.value}"
        )
    if not any(row.subject.startswith("LitServe") for row in rows):
        print("LitServe is not installed (the extra `bench`): its rows are left out")
    if options.json:
        from iwm.files import write_json

        write_json(
            options.json,
            {
                "cores": options.cores,
                "seconds": options.seconds,
                "turns": options.turns,
                "offline": {name: found.offline for name, found in models.items()},
                "bounds": {
                    name: {call: asdict(bound) for call, bound in found.bounds.items()}
                    for name, found in models.items()
                },
                "figures": [asdict(row) for row in rows],
                "goals": [asdict(verdict) for verdict in verdicts],
            },
        )


if __name__ == "__main__":
    main()

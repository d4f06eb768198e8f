"""The serving benchmark's client and its verdicts; all of it, really started, in the slow tier."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tinymodel import write_action_model

from benchmarks.serving.bounds import Bound, Costs
from benchmarks.serving.goals import Figure, judge
from benchmarks.serving.traffic import lap, once, post

ROOT = Path(__file__).resolve().parents[3]
CALLS = ("encode", "predict", "rollout")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(503 if self.path == "/busy" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_the_client_counts_answers_and_refusals(port: int) -> None:
    right, busy = (post(port, path, b"hello", {"X-A": "b"}) for path in ("/right", "/busy"))
    assert once(right) == b"hello"
    with pytest.raises(RuntimeError, match="status 503"):
        once(busy)
    seen = lap([right, busy], 3, 0.3)
    assert set(seen.refused) == {503}
    assert abs(len(seen.milliseconds) - seen.refused[503]) <= 3
    assert 0 < seen.percentile(50) <= seen.percentile(99)
    assert seen.throughput == len(seen.milliseconds) / seen.seconds
    with pytest.raises(RuntimeError, match="nothing was answered"):
        lap([busy], 1, 0.05).percentile(50)


def _figures(**slower: float) -> dict[tuple[str, str, int], Figure]:
    """The service is 1 ms over an engine of 2 ms; the others by the given factors."""
    found = {}
    others = ("plain FastAPI", "LitServe", "LitServe, batches", "HTTP alone")
    for subject in ("engine", "iwm", *others):
        times = slower.get(subject.split(",")[0].split()[0].lower(), 1.0)
        base = 2.0 if subject == "engine" else 3.0 * times
        for call in (*CALLS, "encode, raw", "mixed"):
            for clients in (1, 16):
                rate = 1000 / base
                figure = Figure("m", subject, call, clients, base, 3 * base, rate, 9, 0, 0.5, 0.1)
                found[subject, call, clients] = figure
    return found


def test_verdicts() -> None:
    offline = {call: {1: 300.0, 16: 350.0} for call in CALLS}
    bounds = dict.fromkeys(CALLS, Bound.of(Costs(0.001, 0.0, 0.0005, 0.0005), 2, 350.0))
    verdicts = judge("m", _figures(plain=20, litserve=2), offline, bounds, small=True)
    assert all(verdict.met for verdict in verdicts), [v for v in verdicts if not v.met]
    behind = judge("m", _figures(plain=2, litserve=0.5, iwm=2), offline, bounds, small=False)
    assert any("48% of it reached" in verdict.value for verdict in behind)
    missed = [verdict.goal for verdict in behind if not verdict.met]
    assert len(missed) == 2 + 3 + 2 + 6
    assert len(verdicts) == len(behind) + 3


def test_verdicts_are_of_the_calls_that_were_measured() -> None:
    figures = {key: it for key, it in _figures().items() if key[1].startswith("encode")}
    bounds = {"encode": Bound.of(Costs(0.001, 0.0, 0.0005, 0.0005), 2, 350.0)}
    verdicts = judge("m", figures, {"encode": {16: 350.0}}, bounds, small=True)
    assert len(verdicts) == 1 + 1 + 1 + 2 + 1
    assert all(verdict.goal.startswith("/encode") for verdict in verdicts)


def test_a_bound_is_of_the_batch_or_of_the_cores() -> None:
    costs = Costs(engine=0.001, decoding=0.0, http=0.0005, clients=0.0005)
    assert Bound.of(costs, 2, 350.0).answers == 350.0
    assert Bound.of(costs, 2, 5000.0).answers == pytest.approx(1000.0)
    assert str(Bound.of(costs, 2, 350.0)) == (
        "at most 350.0/s; core-ms an answer: engine 1.000, http 0.500, clients 0.500"
    )


@pytest.mark.slow
def test_all_of_it_at_its_smallest(tmp_path: Path) -> None:
    folder = write_action_model(tmp_path / "tiny")
    command = [sys.executable, "-m", "benchmarks.serving", "--quick"]
    done = subprocess.run(
        [*command, "--small", str(folder), "--json", str(tmp_path / "found.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    subjects = {row["subject"] for row in found["figures"]}
    assert {"engine", "iwm", "plain FastAPI", "HTTP alone"} <= subjects
    assert all(row["refused"] == 0 for row in found["figures"])
    assert set(found["offline"]["small"]) == set(found["bounds"]["small"]) == set(CALLS)
    assert all(bound["answers"] > 0 for bound in found["bounds"]["small"].values())

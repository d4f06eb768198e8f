"""Dashboard and rules ask only for what is exported; a real Prometheus reads all of it."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from iwm.files import write_json
from iwm.monitoring import board as boards
from iwm.monitoring import catalogue as c
from iwm.monitoring.board import Board
from iwm.monitoring.stages import observed
from iwm.monitoring.training import MetricsTracker
from iwm.serving.metrics import GAUGES, Metrics

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "flows/monitoring"


def service_text() -> str:
    metrics = Metrics(("encode", "predict"))
    metrics.observe("encode", 200, 0.01)
    metrics.observe("predict", 503, 0.5)
    metrics.batches.observe(3)
    return metrics.text(dict.fromkeys(GAUGES, 1.0))


def exported() -> set[str]:
    """Every name that the code exports, histograms' parts among them."""
    names = {metric.name for metric in c.METRICS}
    return names | set(re.findall(r"^(iwm_\w+)", service_text(), re.M))


def expressions() -> Iterator[tuple[str, str]]:
    """``(where, query)`` of every panel and rule."""
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def test_every_name_that_is_asked_for_is_exported() -> None:
    known = exported()
    asked: set[str] = set()
    for where, query in expressions():
        found = set(re.findall(r"\biwm_\w+", query))
        assert found or "up{" in query, where
        assert found <= known, f"{where}: {found - known}"
        asked |= found
    # And nothing that is exported is nowhere to be seen.
    unseen = {metric.name for metric in c.METRICS} - asked
    assert unseen == set()


def test_every_label_that_is_asked_for_is_there() -> None:
    labels = {metric.name: set(metric.labels) for metric in c.METRICS}
    for where, query in expressions():
        for name, inside in re.findall(r"\b(iwm_\w+)\{([^}]*)\}", query):
            if name in labels:
                assert set(re.findall(r"(\w+)\s*=", inside)) <= labels[name], where


def test_the_dashboard_can_be_provisioned() -> None:
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    assert dashboard["uid"] == "iwm"
    places = {
        (p["gridPos"]["x"], p["gridPos"]["y"]) for p in dashboard["panels"] if p["type"] != "row"
    }
    assert len(places) == sum(p["type"] != "row" for p in dashboard["panels"])
    for file in (FOLDER / "provisioning").rglob("*.yml"):
        assert yaml.safe_load(file.read_text())["apiVersion"] == 1


def test_the_page_names_every_metric() -> None:
    page = (ROOT / "docs/monitoring.md").read_text()
    for name in {metric.name for metric in c.METRICS} | {f"iwm_{name}" for name in GAUGES}:
        assert f"`{name}`" in page, name


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")
def test_promtool_is_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (["rules", "rules.yml"], ["config", "prometheus.yml"]):
        done = subprocess.run(
            ["promtool", "check", *arguments], cwd=FOLDER, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
    monkeypatch.setenv(boards.FOLDER, str(tmp_path))
    fill(tmp_path / "model")
    files = [file.read_text() for file in tmp_path.glob("*.prom")]
    for text in (*files, service_text()):
        done = subprocess.run(
            ["promtool", "check", "metrics"],
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


def fill(model: Path) -> MetricsTracker:
    """Metrics of a training and of a stage, told by the code that tells them."""
    (model / "checkpoints/step-00000010").mkdir(parents=True)
    tracker = MetricsTracker("core", model)
    tracker.start(0, {"train": {"epochs": 2, "batch_size": 32, "max_steps": None}})
    logged = {"loss": 0.5, "lr": 1e-3, "epoch": 0.5, "samples_per_second": 640.0, "mean_std": 0.6}
    tracker.log(10, logged)
    with observed("ingest"):
        pass
    return tracker


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """node_exporter's place: a folder of ``.prom`` files, answered as one page."""
    where = tmp_path / "metrics"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = "".join(file.read_text() for file in sorted(where.glob("*.prom")))
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield where, server.server_port
    server.shutdown()
    server.server_close()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs prometheus")
def test_a_real_prometheus_answers_every_query(
    tmp_path: Path, folder: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flows' and stages' files, a training's own port and a really served model, all scraped."""
    from pipelines._served import served

    where, files_port = folder
    monkeypatch.setenv(boards.FOLDER, str(where))
    monkeypatch.setenv(boards.PORT, str(free_port()))
    monkeypatch.chdir(tmp_path)
    write_json(
        tmp_path / "artifacts/shards/shards.json",
        {"revision": "abc", "recordings": ["a"], "frames": {"train": 9}},
    )
    rule = {"figure": "mrr", "value": 0.6, "threshold": 0.5, "verdict": "pass", "comparison": ">"}
    write_json(tmp_path / "reports/gates/core.json", {"passed": True, "rules": [rule]})
    tracker = fill(tmp_path / "model")
    flow = Board("flow_train-iwm")
    flow.add(c.FLOW_RUNS, "train-iwm", "completed")
    flow.write()
    environ = {
        "IWM_MODEL_PATH": "random",
        "IWM_LOG_FORMAT": "json",
        "IWM_RUN_ID": "night-7",
        "PYTHONPATH": str(ROOT),
    }
    with served("bentos.iwm:IWM", tmp_path, environ=environ) as service:
        with pytest.raises(urllib.error.HTTPError, match="422"):
            urllib.request.urlopen(f"{service.url}/encode", data=b"{}")
        jobs = {
            "iwm": files_port,
            "iwm-training": os.environ[boards.PORT],
            "iwm-service": urllib.parse.urlsplit(service.url).port,
        }
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(FOLDER / "rules.yml")],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
                for job, port in jobs.items()
            ],
        }
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
        port = free_port()
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:

            def ask(path: str, **values: str) -> Any:
                query = urllib.parse.urlencode(values)
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{path}?{query}") as a:
                    return json.load(a)["data"]

            deadline = time.monotonic() + 120
            while True:
                try:
                    up = {
                        r["metric"]["job"]: r["value"][1]
                        for r in ask("query", query="up")["result"]
                    }
                except OSError:
                    up = {}
                if up == dict.fromkeys(jobs, "1"):
                    break
                assert time.monotonic() < deadline, up
                time.sleep(0.5)
            for where_asked, query in expressions():
                answer = ask("query", query=query.replace("$phase", ".*"))
                assert answer["resultType"] == "vector", where_asked
            values = {
                query: float(ask("query", query=query)["result"][0]["value"][1])
                for query in (
                    'iwm_training_loss{job="iwm-training"}',
                    'iwm_training_left_seconds{job="iwm"}',
                    'iwm_stage_runs_total{stage="ingest",result="done"}',
                    'iwm_gate_figure{phase="core",figure="mrr"}',
                    'iwm_dataset_frames{split="train"}',
                    'iwm_flow_runs_total{flow="train-iwm"}',
                    'iwm_model_loaded{job="iwm-service"}',
                )
            }
            assert list(values.values()) == [0.5, 1.5, 1.0, 0.6, 9.0, 1.0, 1.0]
            rules = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
            assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
            tracker.finish("done")
    # From its first line to its last, the server's own words among them.
    said = [json.loads(line) for line in (tmp_path / "serve.log").read_text().splitlines()]
    assert {(line["run_id"], line["stage"]) for line in said} == {("night-7", "service")}
    (answer,) = [line for line in said if line["logger"] == "iwm.access"]
    assert (answer["call"], answer["status"]) == ("encode", 422)


def test_a_flow_and_its_stages_share_one_run_id_and_one_format(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from flows.process import judge, supervised\n"
        "import logging\n"
        "logging.basicConfig()\n"
        "with supervised('flow-run-7') as supervisor:\n"
        "    log = logging.getLogger('prefect.task_runs')\n"
        "    log.setLevel(logging.INFO)\n"
        "    stage = [sys.executable, '-m', 'pipelines.gate', 'nope']\n"
        "    ended = supervisor.run(stage, lambda text: log.info('%s', text))\n"
        "    log.info('why: %s', judge('gate@nope', ended))\n"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("IWM_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**clean, "IWM_LOG_FORMAT": "json"},
        capture_output=True,
        text=True,
        check=True,
    )
    said = [json.loads(line) for line in done.stderr.splitlines()]
    assert {line["run_id"] for line in said} == {"flow-run-7"}
    stage, flow = said
    assert (stage["level"], stage["stage"], stage["phase"]) == ("error", "gate", "nope")
    assert flow["stage"] == "flow"
    assert flow["message"].startswith("why: gate@nope failed: gate.nope: not in params.yaml")

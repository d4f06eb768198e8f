"""One log format, and the run id through processes."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iwm import logs
from iwm.errors import ConfigError

ROOT = Path(__file__).parents[2]


def run(*arguments: str, **environ: str) -> tuple[int, str, list[dict[str, Any]]]:
    """A Python program with JSON logs: its code, standard output, and the log's objects."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("IWM_")}
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**clean, "IWM_LOG_FORMAT": "json", **environ},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, [json.loads(line) for line in done.stderr.splitlines()]


def record(message: str, *arguments: object, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("iwm.test", level, __file__, 1, message, arguments, None)


def test_a_run_id_is_made_once_and_kept() -> None:
    environ: dict[str, str] = {}
    made = logs.run_id(environ)
    assert environ == {logs.RUN_ID: made}
    assert logs.run_id(environ) == made
    assert logs.run_id({}) != made


@given(st.text(max_size=80))
def test_a_run_id_is_bounded(text: str) -> None:
    allowed = text.isascii() and len(text) <= 64 and bool(text) and text[0].isalnum()
    allowed = allowed and all(letter.isalnum() or letter in "._-" for letter in text)
    if allowed:
        assert logs.run_id({logs.RUN_ID: text}) == text
    elif text:
        with pytest.raises(ConfigError, match="IWM_RUN_ID: expected 1 to 64"):
            logs.run_id({logs.RUN_ID: text})


def test_the_format_is_one_of_two() -> None:
    assert not logs.as_json({})
    assert logs.as_json({logs.FORMAT: "json"})
    with pytest.raises(ConfigError, match="IWM_LOG_FORMAT: expected text or json"):
        logs.as_json({logs.FORMAT: "xml"})


def test_a_record_is_one_object_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.RUN_ID, "tonight")
    formatter = logs.JsonFormatter({"stage": "train", "phase": "core"})
    first, second = map(json.loads, formatter.format(record("a %s\nb", "ü")).splitlines())
    assert first.pop("time") == second.pop("time")
    assert (first.pop("message"), second.pop("message")) == ("a ü", "b")
    assert first == second
    assert {key: first[key] for key in ("level", "logger", "run_id", "stage", "phase")} == {
        "level": "info",
        "logger": "iwm.test",
        "run_id": "tonight",
        "stage": "train",
        "phase": "core",
    }
    # What is in the format already, a stage's line in its flow's log, stays as it is.
    line = formatter.format(record("a"))
    assert logs.JsonFormatter({"stage": "flow"}).format(record("%s", line)) == line


@given(st.text())
def test_whatever_the_message_every_line_is_an_object(text: str) -> None:
    for line in logs.JsonFormatter().format(record("%s", text)).split("\n"):
        assert logs.object_of(line) is not None


def test_people_read_either_format() -> None:
    formatter = logs.JsonFormatter()
    assert logs.plain(formatter.format(record("gone", level=logging.ERROR))) == "error: gone"
    assert logs.plain(formatter.format(record("gone"))) == "gone"
    assert logs.plain('{"loss": 1}') == '{"loss": 1}'


def test_secrets_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IWM_NOTIFY_URL", "https://chat.example/hooks/s3cr3tpath")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abcdefghijkl")
    said = (
        "postgresql+psycopg://iwm:p@ss:w0rd@db:5432/x refused; "
        "https://chat.example/hooks/s3cr3tpath; key abcdefghijkl"
    )
    for words in (said, f"two\n{said}"):
        line = logs.JsonFormatter().format(record("%s", words))
        assert "w0rd" not in line
        assert "s3cr3tpath" not in line
        assert "abcdefghijkl" not in line
        assert "postgresql+psycopg://db:5432/x refused" in line
    try:
        raise ValueError(said)
    except ValueError:
        raised = record("failed")
        raised.exc_info = sys.exc_info()
    line = logs.JsonFormatter().format(raised)
    assert "ValueError" in json.loads(line)["exception"]
    assert "w0rd" not in line


def test_a_stage_says_everything_in_objects() -> None:
    code, out, said = run("-m", "pipelines.gate", "nope", IWM_RUN_ID="night-7")
    assert (code, out) == (1, "")
    assert [line["level"] for line in said] == ["error"]
    assert said[0]["message"].startswith("gate.nope: not in params.yaml")
    assert (said[0]["run_id"], said[0]["stage"], said[0]["phase"]) == ("night-7", "gate", "nope")


def test_an_unreachable_store_with_a_password_is_told_without_it(tmp_path: Path) -> None:
    program = (
        "from pipelines._stage import run\n"
        "from pipelines._mlflow import tracking_uri, configure\n"
        "import os\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "def stage():\n"
        "    print('tracking', tracking_uri())\n"
        "    configure()\n"
        "run(stage)\n"
    )
    uri = "postgresql+psycopg://iwm:hunter22@127.0.0.1:9/iwm?connect_timeout=1"
    code, _, said = run("-c", program, MLFLOW_TRACKING_URI=uri)
    assert code == 1
    assert "hunter22" not in json.dumps(said)
    assert said[0]["message"] == "tracking postgresql+psycopg://127.0.0.1:9/iwm?connect_timeout=1"
    assert said[-1]["level"] == "error"


def test_streams_warnings_loggers_and_uncaught_errors_become_objects() -> None:
    program = (
        "import sys, logging, warnings\n"
        "from iwm import logs\n"
        "logging.basicConfig()\n"
        "logs.configure('train', 'core')\n"
        "print('half', end=''); print(' and half')\n"
        "print('warning: careful', file=sys.stderr)\n"
        "warnings.warn('old', UserWarning)\n"
        "logging.getLogger('someone').error('theirs')\n"
        "print('no end', end='')\n"
        "raise RuntimeError('boom')\n"
    )
    code, out, said = run("-c", program, RANK="3")
    assert (code, out) == (1, "")
    found = [(line["level"], line["logger"], line["message"]) for line in said]
    assert found[0] == ("info", "iwm.stdout", "half and half")
    assert found[1] == ("warning", "iwm.stderr", "careful")
    assert found[2][:2] == ("warning", "py.warnings")
    assert ("error", "someone", "theirs") in found
    assert ("critical", "iwm", "RuntimeError: boom") in found
    assert found[-1] == ("info", "iwm.stdout", "no end")
    assert any("Traceback" in line.get("exception", "") for line in said)
    assert {line["rank"] for line in said} == {"3"}
    assert len({line["run_id"] for line in said}) == 1


def test_an_answer_for_other_programs_stays_as_it_is() -> None:
    code, out, said = run("-c", "from iwm.cli import main; main()", "--version")
    assert code == 0
    assert out.strip()
    assert said == []

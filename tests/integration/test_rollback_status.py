"""Going back to an earlier champion, and what `iwm status` tells, on a real MLflow store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tinymodel import write_phase
from typer.testing import CliRunner

from iwm.errors import TrackingError
from iwm.files import write_json
from pipelines._mlflow import configure
from pipelines._registry import ROLLED_BACK, champions
from pipelines.register import register
from pipelines.rollback import command as rollback_command
from pipelines.rollback import rollback
from pipelines.status import collect, rows
from pipelines.status import command as status_command

NOWHERE = "http://127.0.0.1:9"


def champion() -> str:
    return str(configure().get_model_version_by_alias("iwm", "champion").version)


def run(command: object, *arguments: str) -> str:
    import typer

    app = typer.Typer()
    app.command()(command)  # type: ignore[arg-type]
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_back_and_forth(checkout: Path) -> None:
    with pytest.raises(TrackingError, match="iwm: has no champion"):
        rollback("core", None, "why")
    for seed, mrr in enumerate((0.5, 0.6, 0.7)):
        write_phase(checkout, seed=seed, mrr=mrr)
        assert register("core")["alias"] == "champion"
    client = configure()
    assert champions(client, "iwm") == ["1", "2", "3"]

    assert rollback("core", None, "worse in play") == {"model": "iwm", "from": "3", "to": "2"}
    assert champion() == "2"
    assert client.get_model_version("iwm", "3").tags[ROLLED_BACK] == "worse in play"
    # What was taken out of service does not come back by being registered again.
    again = register("core")
    assert (again["alias"], again["version"], again["champion"]) == ("challenger", "3", "2")
    assert again["reason"] == "rolled back: worse in play"

    assert rollback("core", None, "older still")["to"] == "1"
    with pytest.raises(TrackingError, match="version 1 is the first champion"):
        rollback("core", None, "why")
    with pytest.raises(TrackingError, match="version 1 is the champion already"):
        rollback("core", "1", "why")
    with pytest.raises(TrackingError, match="has no version 9"):
        rollback("core", "9", "why")
    # Named, also one that was taken out: somebody says so.
    printed = run(rollback_command, "core", "--to", "3", "--reason", "it was the data")
    assert "version 3 is champion again, 1 is out" in printed
    assert "no Bento was built" in printed
    assert champion() == "3"
    assert ROLLED_BACK not in client.get_model_version("iwm", "3").tags
    assert register("core")["alias"] == "champion"
    assert champions(client, "iwm") == ["3"]


def test_a_better_model_takes_over_from_the_restored_one(checkout: Path) -> None:
    for seed, mrr in enumerate((0.5, 0.7)):
        write_phase(checkout, seed=seed, mrr=mrr)
        register("core")
    rollback("core", None, "why")
    write_phase(checkout, seed=5, mrr=0.6)
    assert register("core")["alias"] == "champion"
    assert champions(configure(), "iwm") == ["1", "3"]


def test_status_of_an_empty_checkout_and_of_a_full_one(checkout: Path) -> None:
    empty = collect(NOWHERE, f"{NOWHERE}/api")
    assert empty["gates"] == empty["champions"] == {}
    assert empty["service"]["status"] == empty["flows"]["status"] == "does not answer"
    assert dict(rows(empty))["bento"].startswith("none yet")

    write_phase(checkout)
    register("core")
    write_phase(checkout, "invariant", passed=False)
    write_json(checkout / "artifacts/package.json", {"tag": "iwm:abc"})
    (checkout / "artifacts/models/action/checkpoints").mkdir(parents=True)
    (checkout / "reports/gates/torn.json").write_text("{")
    found = json.loads(run(status_command, "--url", NOWHERE, "--json"))
    assert found["gates"]["core"] == {"rules": 1, "missed": []}
    assert found["gates"]["invariant"]["missed"] == ["mrr.model"]
    assert found["champions"]["iwm"]["version"] == "1"
    assert found["training"] == ["action"]
    assert found["bento"] == "iwm:abc"
    assert found["errors"] == []
    printed = run(status_command, "--url", NOWHERE)
    assert "FAILED: mrr.model" in printed
    assert "champion iwm" in printed


def test_status_says_when_the_tracker_cannot_be_reached(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{NOWHERE.replace('//', '//u:secret@')}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    found = collect(NOWHERE, f"{NOWHERE}/api")
    assert len(found["errors"]) == 1
    assert "secret" not in json.dumps(found["errors"])

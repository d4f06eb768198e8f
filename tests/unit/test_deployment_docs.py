"""The snippets of docs/deployment.md are what they look like."""

from __future__ import annotations

import configparser
import re
from pathlib import Path
from typing import Any

import yaml

from iwm import logs
from iwm.serving import config as serving

TEXT = (Path(__file__).parents[2] / "docs/deployment.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def test_the_compose_file() -> None:
    service: dict[str, Any] = yaml.safe_load(blocks("yaml")[0])["services"]["iwm"]
    # What is published stays on this machine; inside, loopback would reach nobody.
    assert service["ports"] == ["127.0.0.1:8001:8001"]
    assert service["environment"]["IWM_SERVICE_HOST"] == "0.0.0.0"
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    compile(service["healthcheck"]["test"][-1], "healthcheck", "exec")
    for block in blocks("yaml"):
        yaml.safe_load(block)


def test_the_unit() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(blocks("ini")[0])
    assert set(unit.sections()) == {"Unit", "Service", "Install"}
    service = unit["Service"]
    assert service["User"] not in ("", "root")
    assert service["ExecStart"].startswith("/opt/iwm/.venv/bin/iwm serve ")
    assert service["NoNewPrivileges"] == "yes"


def test_every_variable_is_one_that_the_service_reads() -> None:
    known = {*serving._VARIABLES, "IWM_CORS_ORIGINS", logs.FORMAT}
    assert set(re.findall(r"IWM_[A-Z_]+", TEXT)) <= known

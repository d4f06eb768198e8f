from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iwm.config import Params, resolve_profile
from iwm.evaluation.captions import CAPTIONS, place
from iwm.files import write_json
from iwm.settings import parse
from pipelines._summary import interval, must_beat, number, phases
from pipelines.report import command, flatten, pictures, sections

ROOT = Path(__file__).parents[3]
FIGURE = {"mean": 1.0, "low": 0.5, "high": 1.5, "n": 3}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (True, "True"),
        ("ok", "ok"),
        (22000, "22,000"),
        (0.02392, "0.02392"),
        (0.635214, "0.6352"),
        (12000.0, "12,000"),
        (0, "0"),
    ],
)
def test_figures_for_people(value: object, text: str) -> None:
    assert number(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_figure_keeps_its_size(value: float) -> None:
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=1e-3)


def test_a_rule_in_words() -> None:
    rule = {
        "value": 0.6352,
        "low": 0.5602,
        "high": 0.7117,
        "baseline": "mrr.chance",
        "baseline_value": 0.0239,
        "threshold": 0.1196,
    }
    assert interval(rule) == "0.6352 [0.5602, 0.7117]"
    assert must_beat(rule) == "mrr.chance 0.0239"
    constant = {**rule, "baseline": None, "low": None}
    assert (interval(constant), must_beat(constant)) == ("0.6352", "0.1196")


def test_every_figure_of_a_report_is_listed_by_its_dotted_name() -> None:
    figure = {"mean": 1.0, "low": None, "high": None, "n": 3}
    metrics = {"profile": "cpu", "mrr": {"model": figure, "chance": figure}, "rank": figure}
    assert [name for name, _ in flatten(metrics)] == ["mrr.model", "mrr.chance", "rank"]


def test_figures_are_grouped_by_their_first_name() -> None:
    metrics = {"mrr": {"model": FIGURE, "chance": FIGURE}, "rank": FIGURE, "split": "test"}
    found = sections(metrics)
    assert {head: [name for name, _ in rows] for head, rows in found.items()} == {
        "mrr": ["model", "chance"],
        "rank": ["rank"],
    }


def test_every_phase_of_the_parameters_is_looked_for() -> None:
    values = resolve_profile("smoke", profiles=ROOT / "profiles.yaml")
    found = phases(parse(Params, values, "profile"))
    assert {*values["train"], *values["evaluate"], *values["gate"]} <= set(found)
    assert len(found) == len(set(found))


def test_pictures_stand_in_the_order_of_their_captions(tmp_path: Path) -> None:
    for name in ("loss", "unheard_of", "rollout", "calibration"):
        (tmp_path / f"{name}.png").write_bytes(b"png")
    found = pictures(tmp_path)
    assert [name for name, _, _ in found] == ["rollout", "calibration", "loss", "unheard_of"]
    assert found[0][1] == CAPTIONS["rollout"]
    assert found[-1][1] == "unheard of"
    assert place("ranks") < place("loss") < place("unheard_of")


def test_each_measured_model_has_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = resolve_profile("smoke", profiles=ROOT / "profiles.yaml")
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "params.yaml", values)  # JSON is YAML
    write_json(tmp_path / "reports/metrics/core.json", {"split": "test", "mrr": {"model": FIGURE}})
    folder = tmp_path / "artifacts/evaluation/core"
    folder.mkdir(parents=True)
    (folder / "loss.png").write_bytes(b"png")
    command()
    page = (tmp_path / "reports/models/core.html").read_text()
    assert "data:image/png;base64,cG5n" in page
    assert CAPTIONS["loss"].split(";")[0] in page
    assert "0.5 to 1.5" in page
    assert "models/core.html" in (tmp_path / "reports/index.html").read_text()
    assert [path.name for path in (tmp_path / "reports/models").iterdir()] == ["core.html"]

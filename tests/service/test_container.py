"""What BentoML emits for a container: the Dockerfile, the pins, the files it would copy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tinymodel import VOCABULARY, write_action_model

from pipelines._bentos import place
from pipelines.package import build, lay_out

# Packages that the Bento does not ask for, directly or not, are made impossible to import; then
# the service must still load its model and answer.
ALONE = """
import sys
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

wanted, asked = set(), []
for line in open("requirements.txt").read().split():
    asked.append(Requirement(line))

while asked:
    requirement = asked.pop()
    name = canonicalize_name(requirement.name)
    if name in wanted:
        continue
    wanted.add(name)
    try:
        lines = requires(name) or []
    except PackageNotFoundError:
        continue
    needed = [Requirement(line) for line in lines]
    extras = [{"extra": extra} for extra in (requirement.extras or {""})]
    asked += [r for r in needed if not r.marker or any(r.marker.evaluate(e) for e in extras)]
owners = packages_distributions()
absent = {
    module
    for module, names in owners.items()
    if not {canonicalize_name(name) for name in names} & wanted
} - {"iwm", "bentos", "pipelines", "_distutils_hack", "setuptools", "pkg_resources"}


class Present(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in absent:
            return super().find_spec(name, path, target)


sys.meta_path[:] = [Present if finder is PathFinder else finder for finder in sys.meta_path]
assert "pytest" in absent and "torch" not in absent

import bentos.iwm

app = bentos.iwm._app
app.state.runtime.load()
from starlette.testclient import TestClient
from io import BytesIO
from PIL import Image

assert app.state.runtime.config.model_path.name == "model", app.state.runtime.config
picture = BytesIO()
Image.new("RGB", (64, 48), "red").save(picture, "JPEG")
with TestClient(app) as client:
    answer = client.post(
        "/encode", content=picture.getvalue(), headers={"Content-Type": "image/jpeg"}
    )
    assert answer.status_code == 200, answer.text
    z_cls = answer.json()["z_cls"]
    for path, body in {
        "/predict": {"z_cls": z_cls, "action": "noop"},
        "/rollout": {"z_cls": z_cls, "actions": ["noop", "attack"]},
        "/plan": {"z_cls": z_cls, "goal_z_cls": z_cls, "candidates": 8, "iterations": 2},
        "/surprise": {"z_cls_prev": z_cls, "action": "noop", "z_cls": z_cls},
    }.items():
        answer = client.post(path, json=body)
        assert answer.status_code == 200, (path, answer.text)
    assert client.get("/").text.startswith("<!doctype html>")
    print("alone:", *client.get("/model").json()["vocabulary"])
app.state.runtime.close()
"""


@pytest.fixture(scope="module")
def bento(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Bento that was really built."""
    scratch = tmp_path_factory.mktemp("bento")
    context = scratch / "context"
    context.mkdir()
    write_action_model(context / "model/action")
    lay_out(context)
    home, card = scratch / "home", {"model": "iwm-action", "version": "1", "phase": "action"}
    home.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        # Whatever the builder's own environment holds stays with the builder.
        patch.setenv("IWM_SERVICE_TOKEN", "a-secret-of-the-builder")
        build(context, "iwm:1", card, home)
    return place("iwm:1", home)


def test_the_dockerfile(bento: Path) -> None:
    lines = (bento / "env/docker/Dockerfile").read_text().splitlines()
    text = "\n".join(lines)
    bases = [line for line in lines if line.startswith("FROM ")]
    assert len(bases) == 1
    assert bases[0].startswith("FROM python:3.11")
    # It does not run as root: the last user is the one that the image made.
    assert [line for line in lines if line.startswith("USER ")] == ["USER bentoml"]
    assert lines.index("USER bentoml") < next(
        number for number, line in enumerate(lines) if line.startswith("ENTRYPOINT ")
    )
    assert "COPY --chown=bentoml:bentoml . ./" in lines
    assert "pip install -r $BENTO_PATH/env/python/requirements.txt" in text
    for name, value in (
        ("BENTOML_DO_NOT_TRACK", "True"),
        ("OTEL_SDK_DISABLED", "true"),
        ("OMP_WAIT_POLICY", "PASSIVE"),
    ):
        assert f"ARG {name}={value}" in lines
        assert f"ENV {name}=${name}" in lines
    assert "IWM_" not in text
    entry = bento / "env/docker/entrypoint.sh"
    assert 'exec bentoml "$@" "$BENTO_PATH"' in entry.read_text()


def test_the_files_that_it_copies(bento: Path) -> None:
    pins = (bento / "env/python/requirements.txt").read_text().split()
    assert pins
    assert all("==" in pin for pin in pins)
    files = {str(path.relative_to(bento)) for path in bento.rglob("*") if path.is_file()}
    for wanted in (
        "bento.yaml",
        "src/bentos/iwm.py",
        "src/iwm/serving/app.py",
        "src/iwm/serving/page/index.html",
        "src/model/action/config.json",
        "src/model/action/model.safetensors",
        "src/model/action/calibration.json",
    ):
        assert wanted in files
    assert not [name for name in files if name.endswith((".pkl", ".pt", ".pyc", ".env"))]
    secret = b"a-secret-of-the-builder"
    assert not [name for name in files if secret in (bento / name).read_bytes()]


def test_its_requirements_are_all_that_it_needs(bento: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("IWM_")}
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        cwd=bento / "src",
        env={**environ, "PYTHONPATH": str(bento / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split("alone: ")[-1].split() == list(VOCABULARY)

"""Stage `package`: a Bento of the champions, which must answer its own smoke requests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pipelines._stage import LEASH, SHARDS, run

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from iwm.config import PackageConfig, RegisterConfig

PACKAGE_FILE = Path("artifacts/package.json")
SCRATCH = Path("artifacts/package.partial")
"""Where the Bento is built; BentoML takes nothing from hidden folders."""
MEGABYTE = 1_000_000
# What follows the registry (IWM_REGISTRY_POLL_S), where mlflow is installed.
FOLLOWING = ("__init__", "_champion", "_mlflow", "_registry", "_stage")
# What the service imports; pinned in the Bento to the versions it is built and queried with.
REQUIREMENTS = (
    "bentoml",
    "fastapi",
    "httptools",
    "numpy",
    "orjson",
    "pillow",
    "pydantic",
    "python-json-logger",
    "safetensors",
    "simplejpeg",
    "timm",
    "torch",
    "torchmetrics",
    "torchvision",
    "uvloop",
    "vector-quantize-pytorch",
)


def fetch(config: PackageConfig, registry: RegisterConfig, target: Path) -> dict[str, Any]:
    """Lay the champions out: a folder a variant in ``target``, and which of them answers.

    Returns:
        Phase -> card; of ``config.also``, those that have a champion.

    Raises:
        TrackingError: the phase has no champion, or the registry cannot be reached.
        GateFailed: a champion's gate report is missing, failed, or of other weights.
        ServiceError: they are larger than ``config.max_mb``.
    """
    from iwm.errors import ServiceError
    from iwm.files import write_json
    from pipelines._champion import fetch_champion, required_champion
    from pipelines._registry import registered_name

    target.mkdir()
    cards: dict[str, Any] = {}
    for phase in dict.fromkeys((config.phase, *config.also)):
        name = registered_name(registry.model, phase)
        if phase == config.phase:
            cards[phase] = required_champion(name, phase, target / phase)
        elif card := fetch_champion(name, target / phase):
            cards[phase] = card
    write_json(target / "models.json", {"default": config.phase})
    sizes = {
        phase: sum(path.stat().st_size for path in (target / phase).rglob("*")) / MEGABYTE
        for phase in cards
    }
    if sum(sizes.values()) > config.max_mb:
        each = ", ".join(f"{phase} {size:.0f}" for phase, size in sizes.items())
        raise ServiceError(
            f"package: the models hold {sum(sizes.values()):.0f} MB ({each}), more than "
            f"package.max_mb {config.max_mb}; leave one out of package.also, or allow more"
        )
    return cards


def lay_out(folder: Path) -> None:
    """Put our code and the requirements beside the model, as ``bentos/bentofile.yaml`` wants."""
    from importlib.metadata import version

    import iwm

    (folder / "pipelines").mkdir()
    for module in FOLLOWING:
        shutil.copy2(Path(__file__).with_name(f"{module}.py"), folder / "pipelines")
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    service = Path(__file__).resolve().parent.parent / "bentos"
    shutil.copytree(Path(iwm.__file__).parent, folder / "iwm", ignore=ignore)
    shutil.copytree(service, folder / "bentos", ignore=ignore)
    shutil.copy2(service / "bentofile.yaml", folder / "bentofile.yaml")
    pins = [f"{package}=={version(package)}\n" for package in REQUIREMENTS]
    (folder / "requirements.txt").write_text("".join(pins), encoding="utf-8")


def build(folder: Path, tag: str, card: dict[str, Any], home: Path) -> None:
    """``bentoml build`` in ``folder``, as ``name:version`` into the BentoML home ``home``.

    Raises:
        ServiceError: the build failed; its last line is quoted.
    """
    from iwm.errors import ServiceError

    labels = {"model": card["model"], "version": card["version"], "phase": card["phase"]}
    name, _, version = tag.partition(":")
    arguments = [sys.executable, "-m", "bentoml", "build", "--name", name, "--version", version]
    for key, value in labels.items():
        arguments += ["--label", f"{key}={value}"]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("IWM_")}
    clean["BENTOML_HOME"] = os.fspath(home)
    # On a leash whose other end is ours: it does not go on building when we are killed.
    reading, writing = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", os.fspath(LEASH), "5", *arguments, "."],
            cwd=folder,
            env=clean,
            stdin=reading,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,  # a leash ends its whole group
        )
    finally:
        os.close(reading)
        os.close(writing)
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise ServiceError(f"bentoml build: {lines[-1] if lines else 'ended without a word'}")


def held_out_frame() -> npt.NDArray[np.uint8]:
    """A frame ``[H, W, 3]`` that no training step saw.

    Raises:
        DataError: the shards hold no such frame.
    """
    from iwm.data.reader import ShardStore
    from iwm.errors import DataError

    store = ShardStore(SHARDS)
    for split in ("test", "val"):
        rows = store.rows(split)
        if len(rows):
            image: npt.NDArray[np.uint8] = store.decode(rows[len(rows) // 2 :][:1])[0]
            return image
    raise DataError(f"{SHARDS}: no held-out frame to query the service with")


def package(config: PackageConfig, registry: RegisterConfig) -> dict[str, Any]:
    """Build, serve, query, stop; returns what ``artifacts/package.json`` holds.

    A Bento enters the store only when it has answered. One of the same content that is there
    is queried instead of being built once more.
    """
    from iwm.client import SyncIWMClient
    from iwm.files import only_one, write_json
    from pipelines import _bentos
    from pipelines._bank import pack_bank
    from pipelines._served import served
    from pipelines._smoke_requests import query

    image = held_out_frame()
    with only_one(PACKAGE_FILE), ExitStack() as stack:
        # Not a temporary name: what a killed process leaves there, the next one removes.
        scratch = SCRATCH.resolve()
        shutil.rmtree(scratch, ignore_errors=True)
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        context, elsewhere, home = scratch / "context", scratch / "elsewhere", scratch / "home"
        for folder in (context, elsewhere, home):
            folder.mkdir(parents=True)
        cards = fetch(config, registry, context / "model")
        pack_bank(context / "model")
        lay_out(context)
        card = cards[config.phase]
        tag = f"{config.name}:{_bentos.version_of(context)}"
        if _bentos.place(tag, _bentos.home()).is_dir():
            home = _bentos.home()
        else:
            build(context, tag, card, home)
        chosen = {"BENTOML_HOME": os.fspath(home)}
        with (
            served(tag, elsewhere, environ=chosen) as service,
            SyncIWMClient(service.url, retries=0) as client,
        ):
            smoke = query(client, image, config.smoke_requests)
            smoke["ready_s"] = round(service.ready_s, 2)
        _bentos.keep(tag, home)
        result = {
            "tag": tag,
            "model": card["model"],
            "model_version": card["version"],
            "weights_sha256": card["weights_sha256"],
            "models": {
                phase: {"model": one["model"], "version": one["version"]}
                for phase, one in cards.items()
            },
            "smoke": smoke,
        }
        write_json(PACKAGE_FILE, result)
    return result


def command() -> None:
    """Build the Bento of the champion, serve it, query it, stop it."""
    from iwm.config import load_params

    params = load_params()
    result = package(params.package, params.register)
    smoke = result["smoke"]
    latencies = ", ".join(f"/{name} {value} ms" for name, value in smoke["p50_ms"].items())
    typer.echo(f"{result['tag']}: {smoke['requests']} requests answered; p50 {latencies}")


if __name__ == "__main__":
    run(command)

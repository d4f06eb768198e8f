"""Stage `package`: a Bento of the champion, which must answer its own smoke requests."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pipelines._stage import SHARDS, run

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from iwm.client import SyncIWMClient
    from iwm.config import PackageConfig, RegisterConfig

PACKAGE_FILE = Path("artifacts/package.json")
# What the service imports; pinned in the Bento to the versions it is built and queried with.
REQUIREMENTS = (
    "bentoml",
    "fastapi",
    "numpy",
    "orjson",
    "pillow",
    "pydantic",
    "safetensors",
    "timm",
    "torch",
    "torchvision",
)


def fetch_champion(config: RegisterConfig, target: Path, phase: str = "core") -> dict[str, Any]:
    """Copy the model folder of a phase's champion to ``target``; returns its card.

    Raises:
        TrackingError: there is no champion, or its files cannot be fetched.
        GateFailed: its gate report is missing, failed, or of other weights.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    from iwm.errors import GateFailed, TrackingError
    from iwm.files import read_json, write_json
    from pipelines import _registry
    from pipelines._mlflow import configure, one_line, tracking_uri

    name = _registry.registered_name(config.model, phase)
    client = configure()
    champion = _registry.version_by_alias(client, name, _registry.CHAMPION)
    if champion is None:
        raise TrackingError(
            f"the registry at {one_line(tracking_uri())} has no champion of {name!r}; "
            f"run `dvc repro -s -f register@{phase}`"
        )
    try:
        fetched = mlflow.artifacts.download_artifacts(
            f"models:/{name}/{champion.version}", dst_path=str(target.parent / "fetched")
        )
    except (MlflowException, OSError) as error:
        raise TrackingError(f"{name} version {champion.version}: {one_line(error)}") from None
    (Path(fetched) / "artifacts" / _registry.ARTIFACT).rename(target)
    gate = target / _registry.GATE_FILE
    where = f"{name} version {champion.version}: {_registry.GATE_FILE}"
    if not gate.is_file():
        raise GateFailed(f"{where}: not found; a model without a passing gate is not packaged")
    digest = _registry.sha256(target / _registry.WEIGHTS_FILE)
    _registry.check_gate(read_json(gate), digest, where)
    card = {
        **read_json(target / "card.json"),
        "version": str(champion.version),
        "alias": _registry.CHAMPION,
    }
    write_json(target / "card.json", card)
    return dict(card)


def lay_out(folder: Path) -> None:
    """Put our code and the requirements beside the model, as ``bentos/bentofile.yaml`` wants."""
    from importlib.metadata import version

    import iwm

    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    service = Path(__file__).resolve().parent.parent / "bentos"
    shutil.copytree(Path(iwm.__file__).parent, folder / "iwm", ignore=ignore)
    shutil.copytree(service, folder / "bentos", ignore=ignore)
    shutil.copy2(service / "bentofile.yaml", folder / "bentofile.yaml")
    pins = [f"{package}=={version(package)}\n" for package in REQUIREMENTS]
    (folder / "requirements.txt").write_text("".join(pins), encoding="utf-8")


def build(folder: Path, name: str, card: dict[str, Any]) -> str:
    """``bentoml build`` in ``folder``; returns the tag.

    Raises:
        ServiceError: the build failed; its last line is quoted.
    """
    from iwm.errors import ServiceError

    labels = {"model": card["model"], "version": card["version"], "phase": card["phase"]}
    arguments = [sys.executable, "-m", "bentoml", "build", "--name", name, "--output", "tag"]
    for key, value in labels.items():
        arguments += ["--label", f"{key}={value}"]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("IWM_")}
    done = subprocess.run(
        [*arguments, "."], cwd=folder, env=clean, capture_output=True, text=True, check=False
    )
    tags = [line for line in done.stdout.splitlines() if line.startswith("__tag__:")]
    if done.returncode or not tags:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise ServiceError(f"bentoml build: {lines[-1] if lines else 'ended without a word'}")
    return tags[-1].removeprefix("__tag__:").strip()


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


def _timed(call: Callable[[], Any], times: int) -> tuple[Any, float]:
    """The last answer, and the median of the wall-clock times in ms."""
    elapsed = []
    for _ in range(times):
        started = time.perf_counter()
        answer = call()
        elapsed.append(1000 * (time.perf_counter() - started))
    return answer, round(statistics.median(elapsed), 3)


def query(client: SyncIWMClient, image: npt.NDArray[np.uint8], times: int) -> dict[str, Any]:
    """Ask every endpoint, check what comes back; returns the latencies.

    Raises:
        ServiceError: an answer is not what it must be.
    """
    import numpy as np

    from iwm.errors import ServiceError

    encoded, encode_ms = _timed(lambda: client.encode_image(image, return_patches=True), times)
    predicted, predict_ms = _timed(lambda: client.predict_next(encoded.z_cls, [0.0]), times)
    rolled, rollout_ms = _timed(lambda: client.rollout(encoded.z_cls, [[0.0]] * 5), times)
    health = client.health()
    width = encoded.latent_dim
    checks = {
        "/encode: z_cls": encoded.z_cls.shape == (width,) and np.isfinite(encoded.z_cls).all(),
        "/encode: z_patches": encoded.z_patches.shape[1:] == (width,),
        "/encode: a latent of a picture is not constant": encoded.z_cls.std() > 0,
        "/predict: z_cls_pred": predicted.z_cls_pred.shape == (width,)
        and np.isfinite(predicted.z_cls_pred).all(),
        "/predict: mrr in [0, 1]": 0.0 <= predicted.mrr <= 1.0,
        "/predict: uncertainty": predicted.uncertainty >= 0.0,
        "/rollout: z_cls_seq": rolled.z_cls_seq.shape == (5, width),
        "/rollout: its first step is /predict": np.allclose(
            rolled.z_cls_seq[0], predicted.z_cls_pred, atol=1e-3
        ),
        "/health: counters": [health.get(f"total_{name}s") for name in ("encode", "predict")]
        == [times, times],
    }
    for what, holds in checks.items():
        if not holds:
            raise ServiceError(f"the packaged model failed its smoke request: {what}")
    return {
        "requests": 3 * times + 1,
        "checks": len(checks),
        "p50_ms": {"encode": encode_ms, "predict": predict_ms, "rollout": rollout_ms},
        "mrr": round(predicted.mrr, 4),
        "uncertainty": round(predicted.uncertainty, 4),
    }


def package(config: PackageConfig, registry: RegisterConfig) -> dict[str, Any]:
    """Build, serve, query, stop; returns what ``artifacts/package.json`` holds."""
    from iwm.client import SyncIWMClient
    from iwm.files import write_json
    from pipelines._served import served

    image = held_out_frame()
    with tempfile.TemporaryDirectory(prefix="iwm-package-") as scratch:
        context = Path(scratch) / "context"
        context.mkdir()
        card = fetch_champion(registry, context / "model", config.phase)
        lay_out(context)
        shutil.rmtree(context / "fetched", ignore_errors=True)
        tag = build(context, config.name, card)
        elsewhere = Path(scratch) / "elsewhere"
        elsewhere.mkdir()
        with served(tag, elsewhere) as service, SyncIWMClient(service.url, retries=0) as client:
            smoke = query(client, image, config.smoke_requests)
            smoke["ready_s"] = round(service.ready_s, 2)
    result = {
        "tag": tag,
        "model": card["model"],
        "model_version": card["version"],
        "weights_sha256": card["weights_sha256"],
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

"""The champion's files: fetched from the registry, its gate checked once more."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iwm.errors import GateFailed, TrackingError
from iwm.files import read_json, write_json
from pipelines import _registry
from pipelines._mlflow import configure, one_line, tracking_uri


def fetch_champion(name: str, target: Path) -> dict[str, Any] | None:
    """Copy the model folder of a name's champion to ``target``.

    Returns:
        Its card, or ``None`` where there is no champion.

    Raises:
        TrackingError: the registry or its files cannot be reached.
        GateFailed: its gate report is missing, failed, or of other weights.
    """
    champion = _registry.version_by_alias(configure(), name, _registry.CHAMPION)
    return None if champion is None else _fetch(name, str(champion.version), target)


def required_champion(name: str, phase: str, target: Path) -> dict[str, Any]:
    """As :func:`fetch_champion`, where there must be one.

    Raises:
        TrackingError: there is none, too.
    """
    card = fetch_champion(name, target)
    if card is None:
        raise TrackingError(
            f"the registry at {one_line(tracking_uri())} has no champion of {name!r}; "
            f"run `dvc repro -s -f register@{phase}`"
        )
    return card


def fetch_moved(card: Mapping[str, Any], target: Path) -> bool:
    """Fetch the champion of a served model's name, if it is another version than the served one.

    Args:
        card: of the served model.
        target: an empty folder, which the champion's files are put into.

    Returns:
        Whether they were. Not, where the model is of no registry.

    Raises:
        TrackingError: the registry or its files cannot be reached.
        GateFailed: the new champion's gate report is missing, failed, or of other weights.
    """
    name, version = card.get("model"), card.get("version")
    if name is None or version is None:
        return False
    champion = _registry.version_by_alias(configure(), name, _registry.CHAMPION)
    if champion is None or str(champion.version) == version:
        return False
    target.rmdir()
    _fetch(name, str(champion.version), target)
    return True


def _fetch(name: str, version: str, target: Path) -> dict[str, Any]:
    import mlflow
    from mlflow.exceptions import MlflowException

    where = f"{name} version {version}"
    # Beside the target: files are moved into place, not copied.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="fetched-") as scratch:
        try:
            fetched = mlflow.artifacts.download_artifacts(
                f"models:/{name}/{version}", dst_path=scratch
            )
        except (MlflowException, OSError) as error:
            raise TrackingError(f"{where}: {one_line(error)}") from None
        (Path(fetched) / "artifacts" / _registry.ARTIFACT).rename(target)
    gate = target / _registry.GATE_FILE
    if not gate.is_file():
        raise GateFailed(
            f"{where}: {_registry.GATE_FILE}: not found; a model without a passing gate is not "
            "packaged"
        )
    digest = _registry.sha256(target / _registry.WEIGHTS_FILE)
    _registry.check_gate(read_json(gate), digest, f"{where}: {_registry.GATE_FILE}")
    card = {
        **read_json(target / "card.json"),
        "version": version,
        "alias": _registry.CHAMPION,
    }
    write_json(target / "card.json", card)
    return card

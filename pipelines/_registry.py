"""The model registry: the evidence a version carries, and who is champion.

A version is weights together with their evidence: calibration, gate report, metrics.
Its tags hold what decisions need (digest, profile, the figure compared), so that no
decision downloads anything.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iwm.errors import GateFailed, ModelError, TrackingError
from iwm.files import read_json, write_json
from pipelines._stage import EVALUATION, MODELS, REPORTS

REGISTRY = Path("artifacts/registry")
CHAMPION, CHALLENGER = "champion", "challenger"
HISTORY = "champions"
"""Tag of a registered name: its champions' versions, oldest first, the present one last."""
ROLLED_BACK = "rolled_back"
"""Tag of a version that was taken out of service, with the reason: it is not promoted again."""
ARTIFACT = "model"
"""Name of the model folder among a version's MLflow artifacts."""
GATE_FILE, METRICS_FILE = "gate.json", "metrics.json"
WEIGHTS_FILE = "model.safetensors"


UNCALIBRATED = ("vqvae", "vqvae-dynamics")
"""Models that give pictures: there is no confidence to calibrate."""
INTENTIONS = "intention.safetensors"
"""The codec of a world model's plans, which lies beside its weights."""
TOKENIZER = "tokenizer"
"""Subfolder of token dynamics that holds their tokenizer."""


def model_name(folder: Path) -> str:
    """The name under which a model folder's model stands in ``iwm.models.registry``."""
    from iwm.models.saving import read_config

    return str(read_config(folder).get("model"))


def calibrated(folder: Path) -> bool:
    """Whether a model is of a kind that needs a calibration."""
    return model_name(folder) not in UNCALIBRATED


def registered_name(base: str, phase: str) -> str:
    """Name in the registry: the base for core, ``<base>-<phase>`` for every other."""
    return base if phase == "core" else f"{base}-{phase}"


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Evidence:
    """A trained phase and everything that was found out about it."""

    phase: str
    folder: Path
    weights_sha256: str
    calibration: Path | None
    """Absent for models whose outputs need none."""
    gate: dict[str, Any]
    metrics: dict[str, Any]
    training: dict[str, Any]

    @property
    def digest(self) -> str:
        """Of weights, calibration, gate and metrics together."""
        text = json.dumps([self.gate, self.metrics], sort_keys=True)
        calibration = "" if self.calibration is None else sha256(self.calibration)
        parts = [self.weights_sha256, calibration, text]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _report(path: Path, stage: str) -> dict[str, Any]:
    try:
        value = read_json(path)
    except FileNotFoundError:
        raise ModelError(f"{path}: not found; run `dvc repro {stage}`") from None
    except ValueError as error:
        raise ModelError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected an object, found {type(value).__name__}")
    return value


def check_gate(gate: Mapping[str, Any], weights_sha256: str, where: str) -> None:
    """Refuse a gate report that does not let these weights pass.

    Raises:
        GateFailed: a rule failed, or the report speaks of other weights.
    """
    rules = gate.get("rules")
    if not isinstance(rules, list) or not rules:
        raise GateFailed(f"{where}: holds no rules; a gate that checks nothing passes nothing")
    missed = [
        f"{rule.get('figure')} missed by {rule.get('missed_by', 0):.4g}"
        for rule in rules
        if rule.get("verdict") != "pass"
    ]
    if missed or gate.get("passed") is not True:
        raise GateFailed(f"{where}: the gate failed: {'; '.join(missed) or 'passed is not true'}")
    if gate.get("weights_sha256") != weights_sha256:
        raise GateFailed(
            f"{where}: the report is of weights {str(gate.get('weights_sha256'))[:12]}, the model "
            f"has {weights_sha256[:12]}; evaluate and gate it again"
        )


def collect(phase: str) -> Evidence:
    """Read a phase's model and reports from the checkout; check that they belong together.

    Raises:
        ModelError: something is missing or unreadable.
        GateFailed: the gate report is missing, failed, or of other weights.
    """
    folder = MODELS / phase
    weights = folder / WEIGHTS_FILE
    for path in (weights, folder / "config.json"):
        if not path.is_file():
            raise ModelError(f"{path}: not found; run `dvc repro train@{phase}`")
    digest = sha256(weights)
    gate_path = REPORTS / "gates" / f"{phase}.json"
    if not gate_path.exists():
        raise GateFailed(
            f"{gate_path}: not found; a model without a passing gate report is refused"
        )
    gate = _report(gate_path, f"gate@{phase}")
    check_gate(gate, digest, str(gate_path))
    calibration = EVALUATION / phase / "calibration.json"
    if calibrated(folder):
        _report(calibration, f"evaluate@{phase}")
    training = folder / "training.json"
    return Evidence(
        phase=phase,
        folder=folder,
        weights_sha256=digest,
        calibration=calibration if calibration.is_file() else None,
        gate=gate,
        metrics=_report(REPORTS / "metrics" / f"{phase}.json", f"evaluate@{phase}"),
        training=_report(training, f"train@{phase}") if training.exists() else {},
    )


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number below ``values`` under its dotted name."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield name, float(value)


def card(evidence: Evidence, name: str) -> dict[str, Any]:
    """What ``GET /model`` tells, but for version and alias, which packaging adds."""
    metrics, training = evidence.metrics, evidence.training
    return {
        "model": name,
        "phase": evidence.phase,
        "weights_sha256": evidence.weights_sha256,
        "profile": metrics.get("profile"),
        "git_commit": metrics.get("commit"),
        "data_revision": metrics.get("data_revision"),
        "gate": evidence.gate,
        "vocabulary": training.get("vocabulary"),
    }


def write_model_folder(evidence: Evidence, name: str, folder: Path) -> None:
    """Lay out what a version carries: weights, config, calibration, gate, metrics, card."""
    folder.mkdir(parents=True)
    for file in ("config.json", WEIGHTS_FILE):
        shutil.copy2(evidence.folder / file, folder / file)
    if evidence.calibration is not None:
        shutil.copy2(evidence.calibration, folder / "calibration.json")
    if (evidence.folder / INTENTIONS).is_file():
        shutil.copy2(evidence.folder / INTENTIONS, folder / INTENTIONS)
    if (evidence.folder / TOKENIZER).is_dir():
        shutil.copytree(evidence.folder / TOKENIZER, folder / TOKENIZER)
    write_json(folder / GATE_FILE, evidence.gate)
    write_json(folder / METRICS_FILE, evidence.metrics)
    write_json(folder / "card.json", card(evidence, name))


def version_by_alias(client: Any, name: str, alias: str) -> Any | None:
    """The version that holds an alias, or ``None``."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException:
        return None


def champions(client: Any, name: str) -> list[str]:
    """Versions that have been champion, oldest first; the present one last."""
    from mlflow.exceptions import MlflowException

    try:
        tags = client.get_registered_model(name).tags or {}
    except MlflowException:
        return []
    return str(tags.get(HISTORY) or "").split()


def crown(client: Any, name: str, version: str, history: list[str] | None = None) -> None:
    """Make a version champion and remember the order in which versions were.

    Args:
        client: of the registry.
        name: registered name.
        version: the new champion.
        history: champions before it; ``None``: as the registry remembers them.
    """
    past = champions(client, name) if history is None else history
    if past[-1:] != [version]:
        past = [*past, version]
    client.set_registered_model_alias(name, CHAMPION, version)
    client.set_registered_model_tag(name, HISTORY, " ".join(past))


def version_by_digest(client: Any, name: str, digest: str) -> Any | None:
    """The newest version of this very evidence, or ``None``."""
    found = client.search_model_versions(f"name='{name}' AND tags.evidence_sha256='{digest}'")
    return max(found, key=lambda version: int(version.version), default=None)


def compare(
    new: Mapping[str, str], champion: Mapping[str, str] | None, figure: str, tolerance: float
) -> tuple[bool, str]:
    """Whether a version whose gates passed becomes champion, and why.

    Args:
        new: the version's tags.
        champion: the present champion's tags, or ``None`` where there is none.
        figure: dotted name; higher is better.
        tolerance: how much worse still counts as no worse.

    Raises:
        TrackingError: the new version has no such figure.
    """
    if f"figure.{figure}" not in new:
        raise TrackingError(f"register.compare: the metrics report holds no figure {figure!r}")
    ours = float(new[f"figure.{figure}"])
    if champion is None:
        return True, f"first version; {figure} {ours:.4g}"
    if champion.get("weights_sha256") == new["weights_sha256"]:
        return True, f"the champion's own weights; {figure} {ours:.4g}"
    if champion.get("profile") != new.get("profile"):
        return True, (
            f"the champion is of profile {champion.get('profile')}, not {new.get('profile')}: "
            f"figures of different data are not compared"
        )
    if f"figure.{figure}" not in champion:
        return True, f"the champion was registered without {figure}"
    theirs = float(champion[f"figure.{figure}"])
    if ours >= theirs - tolerance:
        return True, f"{figure} {ours:.4g}, no worse than the champion's {theirs:.4g}"
    return False, f"{figure} {ours:.4g}, worse than the champion's {theirs:.4g}"

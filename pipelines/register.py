"""Stage `register`: what passed its gate enters the registry; the better one is champion."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines._stage import run

if TYPE_CHECKING:
    from iwm.config import RegisterConfig
    from pipelines._registry import Evidence


def _tags(evidence: Evidence, figure: str) -> dict[str, str]:
    """Tags of a version; MLflow keeps strings."""
    import json

    from pipelines._registry import flat

    wanted = {rule["figure"] for rule in evidence.gate["rules"]}
    tags = {
        "phase": evidence.phase,
        "gate": "passed",
        "gate.rules": json.dumps(evidence.gate["rules"], sort_keys=True)[:4900],
        "weights_sha256": evidence.weights_sha256,
        "evidence_sha256": evidence.digest,
    }
    for name in ("profile", "commit", "data_revision"):
        if evidence.metrics.get(name) is not None:
            tags[name] = str(evidence.metrics[name])
    for name, value in flat(evidence.metrics):
        if name == figure or name.rpartition(".")[0] in wanted:
            tags[f"figure.{name}"] = repr(value)
    return tags


def _describe(evidence: Evidence) -> str:
    """The gate as a table for the registry page."""
    rows = ["| figure | value | must beat | verdict |", "|---|---|---|---|"]
    for rule in evidence.gate["rules"]:
        against = rule.get("baseline") or rule.get("threshold")
        rows.append(f"| {rule['figure']} | {rule['value']} | {against} | {rule['verdict']} |")
    return "\n".join(rows)


def _run_id(client: Any, evidence: Evidence) -> str | None:
    """The training run, where this store has it."""
    from mlflow.exceptions import MlflowException

    run_id = evidence.training.get("run_id")
    try:
        return str(client.get_run(run_id).info.run_id) if run_id else None
    except MlflowException:
        return None


def _signature(folder: Path) -> Any:
    """What the model in a folder takes and gives, for MLflow."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    from iwm.models.saving import read_config
    from pipelines._registry import UNCALIBRATED, model_name

    def floats(dimensions: int, name: str | None = None) -> TensorSpec:
        return TensorSpec(np.dtype("float32"), (-1,) * dimensions, name)

    kind = model_name(folder)
    if kind == "vrnn":
        windows = TensorSpec(np.dtype("uint8"), (-1, -1, -1, -1, 3), "frames")
        actions = TensorSpec(np.dtype("int64"), (-1, -1), "actions")
        if read_config(folder)["settings"]["action_dim"]:  # names alone do not say everything
            actions = floats(3, "actions")
        imagined = TensorSpec(np.dtype("uint8"), (-1, -1, -1, -1, 3))
        return ModelSignature(inputs=Schema([windows, actions]), outputs=Schema([imagined]))
    if kind == "permanence":
        before, after = (
            TensorSpec(np.dtype("uint8"), (-1,) * dimensions + (-1, -1, 3), name)
            for dimensions, name in ((2, "before"), (1, "after"))
        )
        return ModelSignature(inputs=Schema([before, after]), outputs=Schema([floats(3)]))
    if kind == "embodied":
        taken = Schema([floats(2, "state"), floats(3, "actions")])
        return ModelSignature(inputs=taken, outputs=Schema([floats(3)]))
    pictures = TensorSpec(np.dtype("uint8"), (-1, -1, -1, 3))
    given = pictures if kind in UNCALIBRATED else floats(2)
    return ModelSignature(inputs=Schema([pictures]), outputs=Schema([given]))


def _log(
    client: Any, evidence: Evidence, config: RegisterConfig, name: str, tags: dict[str, str]
) -> Any:
    """Log the model and make a version of it.

    The version comes last and with all its tags, in one transaction: a registration that was
    killed has left none, or one that :func:`pipelines._registry.version_by_digest` finds.
    """
    import warnings

    import mlflow

    from pipelines import _registry
    from pipelines._mlflow import experiment_id

    signature = _signature(evidence.folder)
    run_id = _run_id(client, evidence)
    opened = (
        mlflow.start_run(run_id=run_id, log_system_metrics=False)
        if run_id
        else mlflow.start_run(
            experiment_id=experiment_id(client, config.experiment),
            run_name=f"register {evidence.phase}",
            log_system_metrics=False,
        )
    )
    with opened, tempfile.TemporaryDirectory(prefix="iwm-register-") as scratch:
        folder = Path(scratch) / _registry.ARTIFACT
        _registry.write_model_folder(evidence, name, folder)
        if run_id is None:  # the training run has them already
            figures = {f"eval.{key}": value for key, value in _registry.flat(evidence.metrics)}
            mlflow.log_metrics(figures)
        with warnings.catch_warnings():
            # MLflow advises an input example; the signature says it all.
            warnings.simplefilter("ignore", UserWarning)
            logged = mlflow.pyfunc.log_model(
                name=evidence.phase,
                python_model=str(Path(__file__).with_name("_pyfunc.py")),
                artifacts={_registry.ARTIFACT: str(folder)},
                signature=signature,
                pip_requirements=["iwm"],
            )
        return mlflow.register_model(logged.model_uri, name, tags=tags)


def _close(client: Any, run_id: str | None) -> None:
    """End the run of a version that a killed registration had left open."""
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):
        if run_id and client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id)


def register(phase: str) -> dict[str, Any]:
    """Register a phase of the checkout in the current folder.

    Registering the same weights with the same reports again finds the version that is
    there. Returns what ``artifacts/registry/<phase>.json`` holds.

    Raises:
        GateFailed: the gate report is missing, failed, or of other weights.
        ModelError: the model or a report is missing.
        TrackingError: the registry cannot be reached.
    """
    from iwm.config import load_params
    from iwm.files import only_one, write_json
    from pipelines import _registry

    config = load_params().register
    place = _registry.REGISTRY / f"{phase}.json"
    with only_one(place):
        result = _register(phase, _registry.collect(phase), config)
        write_json(place, result)
    return result


def _register(phase: str, evidence: Evidence, config: RegisterConfig) -> dict[str, Any]:
    from mlflow.exceptions import MlflowException

    from iwm.errors import TrackingError
    from pipelines import _registry
    from pipelines._mlflow import configure, one_line

    name = _registry.registered_name(config.model, phase)
    figure = config.compare_for.get(phase, config.compare)
    tags = _tags(evidence, figure)
    client = configure()
    try:
        champion = _registry.version_by_alias(client, name, _registry.CHAMPION)
        promoted, reason = _registry.compare(
            tags, champion.tags if champion else None, figure, config.tolerance
        )
        version = _registry.version_by_digest(client, name, evidence.digest)
        if version is None:
            version = _log(client, evidence, config, name, tags)
        if not version.description:
            client.update_model_version(name, version.version, description=_describe(evidence))
        if back := version.tags.get(_registry.ROLLED_BACK):
            promoted, reason = False, f"rolled back: {back}"
        alias = _registry.CHAMPION if promoted else _registry.CHALLENGER
        for key, value in {**tags, "decision": f"{alias}: {reason}"}.items():
            client.set_model_version_tag(name, version.version, key, value)
        if promoted:
            _registry.crown(client, name, str(version.version))
        else:
            client.set_registered_model_alias(name, alias, version.version)
        challenger = _registry.version_by_alias(client, name, _registry.CHALLENGER)
        if promoted and challenger and challenger.version == version.version:
            client.delete_registered_model_alias(name, _registry.CHALLENGER)
        _close(client, version.run_id)
    except MlflowException as error:
        raise TrackingError(f"registry: {one_line(error)}") from None
    return {
        "model": name,
        "version": str(version.version),
        "alias": alias,
        "champion": str(version.version if promoted or champion is None else champion.version),
        "run_id": version.run_id,
        "weights_sha256": evidence.weights_sha256,
        "reason": reason,
    }


def command(
    phase: Annotated[str, typer.Argument(help="Which phase, e.g. core.")],
) -> None:
    """Register a model whose gate passed; move the alias champion if it is no worse."""
    result = register(phase)
    typer.echo(
        f"{result['model']} version {result['version']} is {result['alias']}: {result['reason']}"
    )


if __name__ == "__main__":
    run(command)

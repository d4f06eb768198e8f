"""Stage `evaluate`: one trained phase on held-out episodes: figures, calibration, pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

from pipelines._stage import EVALUATION, MODELS, REPORTS, SHARDS, run, share_processors

# Registry name of the model -> module with
# `measure(phase, params, store, folder) -> (metrics, lines for the terminal)`,
# which leaves calibration.json and pictures in `folder`.
EVALUATIONS = {
    "iwm": "pipelines._evaluate_image",
    "action": "pipelines._evaluate_action",
    "embodied": "pipelines._evaluate_embodied",
    "permanence": "pipelines._evaluate_permanence",
    "vqvae": "pipelines._evaluate_vqvae",
    "vqvae-dynamics": "pipelines._evaluate_token_dynamics",
    "vrnn": "pipelines._evaluate_vrnn",
}
COMPARISON = "pipelines._evaluate_dual"
"""The same for an entry with ``streams``: two phases side by side."""


def evaluate(
    phase: Annotated[str, typer.Argument(help="an entry under `evaluate` in params.yaml")],
) -> None:
    """Measure PHASE on held-out episodes into reports/metrics/PHASE.json; calibrate it."""
    from iwm.config import load_params
    from iwm.errors import ConfigError, ModelError

    params = load_params()
    if phase not in params.evaluate:
        raise ConfigError(
            f"evaluate.{phase}: not in params.yaml; it has {', '.join(params.evaluate)}"
        )
    streams = params.evaluate[phase].streams

    share_processors()
    from iwm.data.reader import ShardStore
    from iwm.evaluation.pictures import loss_curve
    from iwm.files import atomic_directory, only_one, read_json, write_json
    from iwm.models.saving import read_config
    from iwm.training.tracking import read_history
    from pipelines._provenance import git_commit
    from pipelines._tracking import log_evaluation

    for member in streams or (phase,):
        folder = MODELS / member
        try:
            training = read_json(folder / "training.json")
        except FileNotFoundError:
            raise ModelError(
                f"{folder / 'training.json'}: not found; run `iwm train {member}` first"
            ) from None
    name = read_config(folder).get("model")
    if name not in EVALUATIONS:
        raise ModelError(
            f"{folder}: no evaluation for a model {name!r}; there is one for "
            f"{', '.join(EVALUATIONS)}"
        )
    store = ShardStore(SHARDS)
    module = import_module(COMPARISON if streams else EVALUATIONS[name])
    with only_one(EVALUATION / phase), atomic_directory(EVALUATION / phase) as temporary:
        metrics, lines = module.measure(phase, params, store, temporary)
        if not streams:
            loss_curve(read_history(folder / "history.jsonl"), temporary / "loss.png")
    write_json(
        REPORTS / "metrics" / f"{phase}.json",
        {
            "phase": phase,
            "profile": params.profile,
            "commit": git_commit(),
            "data_revision": store.info.revision,
            "weights_sha256": _weights(streams) if streams else _weights((phase,))[phase],
            "split": params.evaluate[phase].split,
            **metrics,
        },
    )
    if not streams:  # a comparison belongs to no single training run
        pictures = sorted((EVALUATION / phase).glob("*.png"))
        log_evaluation(training.get("run_id"), metrics, pictures)
    for line in lines:
        typer.echo(line)


def _weights(phases: Sequence[str]) -> dict[str, str]:
    """SHA-256 of each phase's weights."""
    found = {}
    for phase in phases:
        with (MODELS / phase / "model.safetensors").open("rb") as file:
            found[phase] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


if __name__ == "__main__":
    run(evaluate)

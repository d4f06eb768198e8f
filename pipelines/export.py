"""`iwm export`: a phase that passed its gate, packed as a ready-made model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines._stage import EVALUATION, SHARDS, run

TEMPLATES = Path(__file__).parent / "templates"
MAX_PICTURE_BYTES = 400_000
"""A larger picture stays in the run's reports."""


def export_model(phase: str, folder: Path) -> Path:
    """Pack a phase of the checkout in the current folder; returns ``folder``.

    Weights, config, calibration, gate and metrics, a card for machines and one for people,
    held-out frames for the status page, and the evaluation's pictures where they are small. A
    folder that is there is replaced as a whole.

    Args:
        phase: an entry under ``train`` in params.yaml.
        folder: its last part is the model's name.

    Raises:
        ConfigError: the name is no name for a ready-made model, or the folder holds something else.
        GateFailed: the gate report is missing, failed, or of other weights.
        ModelError: something is missing, or the weights are too large to ship.
    """
    from iwm import zoo
    from iwm.errors import ConfigError, ModelError
    from iwm.files import atomic_directory, write_json, write_text
    from pipelines import _registry
    from pipelines._bank import pack_bank

    name = folder.name
    if not zoo.NAME.fullmatch(name):
        raise ConfigError(
            f"export: {name!r} is no name for a model; expected small letters, digits and hyphens"
        )
    if folder.exists() and any(folder.iterdir()) and not (folder / zoo.WEIGHTS_FILE).is_file():
        raise ConfigError(f"export: {folder} holds something that is no model")
    evidence = _registry.collect(phase)
    size = (evidence.folder / zoo.WEIGHTS_FILE).stat().st_size
    if size > zoo.MAX_WEIGHTS_BYTES:
        raise ModelError(
            f"{evidence.folder / zoo.WEIGHTS_FILE}: {size / 1e6:.1f} MB, a ready-made model has "
            f"at most {zoo.MAX_WEIGHTS_BYTES / 1e6:.0f} MB"
        )
    known = _facts(evidence, name)
    with atomic_directory(folder) as temporary:
        packed = temporary / name
        _registry.write_model_folder(evidence, name, packed)
        for file in packed.iterdir():
            file.rename(temporary / file.name)
        packed.rmdir()
        pack_bank(temporary)
        pictures = []
        for picture in sorted((EVALUATION / phase).glob("*.png")):
            if picture.stat().st_size <= MAX_PICTURE_BYTES:
                shutil.copyfile(picture, temporary / picture.name)
                pictures.append(picture.name)
        write_json(temporary / zoo.CARD_FILE, known["card"])
        write_text(temporary / "README.md", _readme({**known, "pictures": pictures}))
        temporary.chmod(0o755)
    return folder


def _facts(evidence: Any, name: str) -> dict[str, Any]:
    """What the cards tell."""
    from iwm.data.shards import read_shard_set
    from iwm.files import read_json
    from iwm.settings import to_dict
    from pipelines import _registry
    from pipelines.report import flatten
    from pipelines.strong import RUNS

    shards = read_shard_set(SHARDS)
    recordings = [to_dict(item) for _, item in sorted(shards.recordings.items())]
    config = read_json(evidence.folder / "config.json")["settings"]
    profile = evidence.metrics.get("profile")
    games = sorted({str(item["game"]) for item in recordings})
    licences = sorted({str(item["licence"]) for item in recordings})
    actions = list(config.get("vocabulary") or ())
    return {
        "name": name,
        "games": games,
        "actions": actions,
        "licences": licences,
        "recordings": [
            {**item, "software": ", ".join(f"{k} {v}" for k, v in sorted(item["software"].items()))}
            for item in recordings
        ],
        "policies": sorted({str(item["extra"].get("policy", "a person's")) for item in recordings}),
        "size": config["image_size"],
        "fit": config.get("fit", "crop"),
        "history": config.get("history"),
        "parameters": evidence.training.get("parameters"),
        "weights_bytes": (evidence.folder / _registry.WEIGHTS_FILE).stat().st_size,
        "training": evidence.training,
        "train_frames": shards.frames["train"],
        "train_episodes": shards.episodes["train"],
        "split": evidence.metrics.get("split", "test"),
        "gate": evidence.gate,
        "figures": [
            (name, value)
            for name, value in flatten(evidence.metrics)
            # Breakdowns stay in metrics.json: a card is read by people.
            if not any(part in name for part in (".measures.", "_of.", "_single.", ".history."))
        ],
        "recipe": _recipe(evidence.training),
        "run": next((game for game, strong in RUNS.items() if strong.profile == profile), None),
        "card": {
            **_registry.card(evidence, name),
            "games": games,
            "actions": actions,
            "parameters": evidence.training.get("parameters"),
            "licence": ["MIT", *licences],
        },
    }


def _recipe(training: dict[str, Any]) -> str:
    import yaml

    settings = training.get("identity", {}).get("train", {})
    return str(yaml.safe_dump(settings, sort_keys=True, width=96))


def _readme(known: dict[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from pipelines._summary import interval, must_beat, number

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown
    )
    environment.globals.update(number=number, interval=interval, must_beat=must_beat)
    return environment.get_template("model_card.md.j2").render(known)


def export(
    phase: Annotated[str, typer.Argument(help="A phase whose gate passed, e.g. action.")],
    folder: Annotated[Path, typer.Argument(help="Where to; its last part names the model.")],
) -> None:
    """Pack PHASE into FOLDER: weights, calibration, reports and a model card."""
    place = export_model(phase, folder)
    size = sum(file.stat().st_size for file in place.iterdir())
    typer.echo(f"{place}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    run(export)

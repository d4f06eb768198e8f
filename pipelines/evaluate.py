"""Stage `evaluate`: one trained phase on held-out episodes: figures, calibration, pictures."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

import typer

from pipelines._stage import EVALUATION, MODELS, REPORTS, SHARDS, run, share_processors


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
    config = params.evaluate[phase]

    share_processors()
    from iwm.data.reader import ShardStore
    from iwm.evaluation.core import draw
    from iwm.evaluation.core import evaluate as measure
    from iwm.evaluation.pictures import loss_curve
    from iwm.files import atomic_directory, read_json, write_json
    from iwm.models.registry import load_model
    from iwm.training.distributed import choose_device
    from iwm.training.tracking import read_history
    from pipelines._provenance import git_commit
    from pipelines._tracking import log_evaluation

    folder = MODELS / phase
    try:
        training = read_json(folder / "training.json")
    except FileNotFoundError:
        raise ModelError(
            f"{folder / 'training.json'}: not found; run `iwm train {phase}` first"
        ) from None
    store = ShardStore(SHARDS)
    model = load_model(folder)
    size = tuple(store.image_shape[:2])
    if tuple(model.config.image_size) != size:
        raise ModelError(
            f"{folder} takes images of {tuple(model.config.image_size)}, the shards in {SHARDS} "
            f"hold {size} (height, width); train again or shard again"
        )
    model.to(choose_device(params.train[phase].device if phase in params.train else "auto"))
    calibrate_on = "val" if config.split == "test" else "test"
    test = frames(store, config.split, config.images, config.seed)
    val = frames(store, calibrate_on, config.images, config.seed)
    many = frames(store, config.split, config.rank_images, config.seed)
    evaluation = measure(model, test, val, many, config)

    with atomic_directory(EVALUATION / phase) as temporary:
        draw(evaluation, test, config, temporary)
        loss_curve(read_history(folder / "history.jsonl"), temporary / "loss.png")
        write_json(temporary / "calibration.json", evaluation.calibration)
    write_json(
        REPORTS / "metrics" / f"{phase}.json",
        {
            "phase": phase,
            "profile": params.profile,
            "commit": git_commit(),
            "data_revision": store.info.revision,
            "weights_sha256": _sha256(folder / "model.safetensors"),
            "split": config.split,
            **evaluation.metrics,
        },
    )
    log_evaluation(
        training.get("run_id"), evaluation.metrics, sorted((EVALUATION / phase).glob("*.png"))
    )
    for name in ("mrr", "mrr_cls_only", "mrr_patches"):
        arms = evaluation.metrics[name]
        beside = ", ".join(
            f"{arm.replace('_', ' ')} {arms[arm]['mean']:.3f}"
            for arm in ("chance", "identity", "null_action", "shuffled_action")
        )
        best = arms["model"]
        typer.echo(f"{name}: {best['mean']:.3f} [{best['low']:.3f}, {best['high']:.3f}] ({beside})")
    rank = evaluation.metrics["collapse"]["effective_rank"]["mean"]
    typer.echo(f"effective rank: {rank:.1f} of {model.latent_dim}")


def frames(store: Any, split: str, count: int, seed: int) -> Any:
    """Up to ``count`` frames of a split, spread evenly over its episodes.

    Args:
        store: the shards.
        split: which part.
        count: frames wanted.
        seed: of the choice.
    """
    import numpy as np
    import torch

    from iwm.evaluation.core import Frames

    rows = store.rows(split)
    recording = store.recording_ids[rows].astype(np.int64)
    episode = (recording << 32) + store.table["episode"].to_numpy()[rows]
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(rows))
    # The k-th frame of every episode stands before the k+1-th of any: an even spread.
    _, label = np.unique(episode[shuffled], return_inverse=True)
    turn = np.zeros(len(rows), np.int64)
    seen = np.zeros(label.max() + 1, np.int64)
    for place, which in enumerate(label):
        turn[place] = seen[which]
        seen[which] += 1
    chosen = np.sort(shuffled[np.argsort(turn, kind="stable")[:count]])
    images = torch.from_numpy(store.decode(rows[chosen])).permute(0, 3, 1, 2).contiguous()
    order = generator.permutation(len(chosen))  # pictures show different episodes first
    return Frames(images[order], episode[chosen][order])


def _sha256(path: Any) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    run(evaluate)

"""`iwm dream`: an imagined episode beside the true one, as a GIF or a film."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines._stage import MODELS, SHARDS, run, share_processors

DYNAMICS = MODELS / "vqvae-dynamics"
LONGEST = 1000
"""Frames of the longest dream that is written."""


def command(
    out: Annotated[Path, typer.Argument(help="A name that ends in .gif or .mp4.")] = Path(
        "dream.gif"
    ),
    model: Annotated[Path, typer.Option(help="Folder of token dynamics.")] = DYNAMICS,
    shards: Annotated[Path, typer.Option(help="Whose held-out play it begins from.")] = SHARDS,
    frames: Annotated[int, typer.Option(help=f"Frames to imagine, 1 to {LONGEST}.")] = 30,
    shown: Annotated[int, typer.Option(help="True frames that it begins with.")] = 4,
    recording: Annotated[str | None, typer.Option(help="Only from this recording.")] = None,
    hold: Annotated[
        str | None, typer.Option(help="Imagine under this action instead of those taken.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which episode.")] = 0,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, help="0: the mean of what may come, which fades; default: as played."),
    ] = None,
    fps: Annotated[float, typer.Option(min=1, max=60, help="Frames a second.")] = 8.0,
    scale: Annotated[int, typer.Option(min=1, max=16, help="Pixels a side of a pixel.")] = 4,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
) -> None:
    """Imagine how a held-out episode goes on, and show it beside how it went."""
    from iwm.errors import ConfigError
    from iwm.evaluation.film import check_suffix, side_by_side, write_film

    check_suffix(out)
    if not 1 <= frames <= LONGEST:
        raise ConfigError(f"--frames {frames}: a dream has 1 to {LONGEST} frames")
    share_processors()
    import torch

    from iwm.data.reader import ShardStore
    from iwm.evaluation.pixels import psnr
    from iwm.evaluation.sequences import imagine, read_windows
    from iwm.models.vqvae.dream import LIVELY
    from iwm.training.distributed import choose_device
    from pipelines._trained import check_fits

    dreamer = _load(model).to(choose_device(device)).eval()
    if not 1 <= shown <= dreamer.context:
        raise ConfigError(f"--shown {shown}: the model looks back on 1 to {dreamer.context} frames")
    store = ShardStore(shards)
    check_fits(dreamer, model, store)
    vocabulary = dreamer.vocabulary
    if hold is not None and hold not in vocabulary:
        raise ConfigError(f"--hold {hold}: the model knows {', '.join(vocabulary)}")
    windows = read_windows(
        store,
        ("val", "test"),
        vocabulary,
        frames=shown + frames,
        count=1,
        seed=seed,
        recordings=None if recording is None else (recording,),
    )
    taken = windows.actions[:, shown - 1 :]
    asked = taken if hold is None else torch.full_like(taken, vocabulary.index(hold))
    made = imagine(
        dreamer,
        windows,
        asked,
        present=shown - 1,
        context=shown,
        seed=seed,
        temperature=LIVELY if temperature is None else temperature,
    ).frames[0]
    true = windows.frames[0, shown:]
    name = "imagined" if hold is None else f"imagined: {hold}"
    captions = [f"{step + 1}: {vocabulary[int(at)]}" for step, at in enumerate(asked[0])]
    film = side_by_side({"as it came": true.numpy(), name: made.numpy()}, captions, scale)
    write_film(film, out, fps)
    last = windows.frames[0, shown - 1].expand_as(true)
    typer.echo(f"{out}: {frames} frames after {shown} true ones")
    if hold is None:
        ours, copied = psnr(made, true), psnr(last, true)
        typer.echo(
            f"PSNR {ours.mean():.2f} dB, of the last true frame {copied.mean():.2f} dB; "
            f"at the end {ours[-1]:.2f} and {copied[-1]:.2f}"
        )


def _load(folder: Path) -> Any:
    """Token dynamics.

    Raises:
        ModelError: there are none, or another model.
    """
    from iwm.errors import ModelError
    from iwm.models.registry import load_model
    from iwm.models.saving import CONFIG_FILE, read_config

    if not (folder / CONFIG_FILE).is_file():
        raise ModelError(
            f"{folder}: no trained model; run `iwm train vqvae-dynamics` first, or give --model"
        )
    kind = read_config(folder).get("model")
    if kind != "vqvae-dynamics":
        raise ModelError(f"{folder}: holds a model {kind!r}; only vqvae-dynamics dreams")
    return load_model(folder)


if __name__ == "__main__":
    run(command)

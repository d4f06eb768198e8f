"""`iwm play`: a world model in the browser. Reconstruct pictures, and play in its dreams."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines._stage import EVALUATION, MODELS, SHARDS, run, share_processors

if TYPE_CHECKING:
    from iwm.app.server import Shown

LOOPBACK = "127.0.0.1"
DYNAMICS = MODELS / "vqvae-dynamics"
TOKENIZER = MODELS / "vqvae"


def command(
    model: Annotated[
        Path | None,
        typer.Option(help=f"A model folder: token dynamics, or a tokenizer alone [{DYNAMICS}]."),
    ] = None,
    shards: Annotated[
        Path, typer.Option(help="Shards whose held-out frames dreams begin from.")
    ] = SHARDS,
    pictures: Annotated[
        Path, typer.Option(help="Where the evaluation left its pictures.")
    ] = EVALUATION,
    host: Annotated[str, typer.Option(help="Address to bind.")] = LOOPBACK,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = 7860,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    sessions: Annotated[
        int, typer.Option(min=1, max=256, help="Visitors who may play at a time.")
    ] = 8,
) -> None:
    """Open the world model in a browser: play in its dreams, reconstruct pictures."""
    share_processors()
    import uvicorn

    from iwm.app.live import MAX_MESSAGE
    from iwm.app.server import create_app

    app = create_app(shown(model, shards, pictures, device, sessions))
    typer.echo(f"http://{host}:{port}")
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        ws="websockets-sansio",
        ws_max_size=MAX_MESSAGE,
        timeout_graceful_shutdown=3,  # pages keep a connection open for as long as they are
    )


def shown(model: Path | None, shards: Path, pictures: Path, device: str, sessions: int) -> Shown:
    """Load what the page is about.

    Args:
        model: a model folder; ``None``: what this checkout trained.
        shards: may be missing.
        pictures: may be missing.
        device: where the model runs.
        sessions: who may play at a time.

    Raises:
        ModelError: no trained model, or one that cannot be loaded.
        DataError: damaged shards, or shards of another game.
        ConfigError: no such device.
    """
    from iwm.app.server import Shown
    from iwm.app.starts import HeldOut
    from iwm.data.reader import ShardStore
    from iwm.errors import ModelError
    from iwm.models.saving import CONFIG_FILE, read_config
    from iwm.serving import dreaming

    folder = model or next(
        (one for one in (DYNAMICS, TOKENIZER) if (one / CONFIG_FILE).is_file()), None
    )
    if folder is None:
        raise ModelError(f"{DYNAMICS}: no trained model; run `dvc repro train@vqvae-dynamics`")
    kind = read_config(folder).get("model")
    if kind == dreaming.DYNAMICS:
        dreamer = dreaming.load_dreamer(folder, device)
        codec, vocabulary, context = dreamer.codec, dreamer.vocabulary, dreamer.context
    elif kind == dreaming.TOKENIZER:
        dreamer, vocabulary, context = None, (), 1
        codec = dreaming.load_codec(folder, device)
    else:
        raise ModelError(
            f"{folder}: holds a model {kind!r}; only vqvae-dynamics and vqvae show frames"
        )
    held_out = None
    if shards.is_dir():
        held_out = HeldOut(ShardStore(shards), codec.preprocess, vocabulary, context)
    return Shown(codec, dreamer, held_out, pictures, sessions)


if __name__ == "__main__":
    run(command)

"""`iwm import`: make recordings of what was recorded elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines._stage import DATA

command = typer.Typer(help="Import a video with its action log, or images.", no_args_is_help=True)

Name = Annotated[
    str | None, typer.Option(help="Name of the recording; by default the file's or folder's.")
]
Game = Annotated[str | None, typer.Option(help="Name of the game.")]
Licence = Annotated[str, typer.Option(help="Licence of the material.")]
Out = Annotated[Path, typer.Option(help="Folder of recordings.")]
Link = Annotated[bool, typer.Option("--link", help="Hard-link instead of copying.")]


@command.command("video")
def video(
    video: Annotated[Path, typer.Argument(help="mp4, mkv, webm ...")],
    log: Annotated[Path, typer.Option(help="Action log: .csv, .tsv, .jsonl or .parquet.")],
    name: Name = None,
    game: Game = None,
    licence: Licence = "unknown",
    out: Out = DATA,
    offset: Annotated[
        float, typer.Option(help="Seconds added to the log's times: video time = log time + this.")
    ] = 0.0,
    actions: Annotated[
        str | None,
        typer.Option(help="The whole vocabulary, comma separated; others are an error."),
    ] = None,
    episode_seconds: Annotated[
        float,
        typer.Option(min=0, help="Cut a log without episode or done into pieces; 0: do not."),
    ] = 30.0,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Seconds by which the log may outlast the video.")
    ] = 1.0,
    accept_longer_log: Annotated[
        bool, typer.Option("--accept-longer-log", help="Leave out rows after the video's end.")
    ] = False,
    allow_truncated: Annotated[
        bool, typer.Option("--allow-truncated", help="Import a cut-off video up to the cut.")
    ] = False,
    link: Link = False,
) -> None:
    """Import VIDEO; each frame gets the action its log says was in force."""
    import math

    from iwm.errors import ConfigError
    from iwm.gameplay.sources.video import import_video

    if not math.isfinite(offset):
        raise ConfigError(f"--offset {offset}: expected a finite number of seconds")
    words = None
    if actions is not None:
        words = tuple(word.strip() for word in actions.split(",") if word.strip())
    done = import_video(
        video,
        log,
        out,
        name=name,
        game=game,
        licence=licence,
        offset_s=offset,
        actions=words,
        episode_s=episode_seconds,
        tolerance_s=tolerance,
        accept_longer_log=accept_longer_log,
        allow_truncated=allow_truncated,
        link=link,
    )
    for warning in done.warnings:
        typer.echo(f"warning: {warning}", err=True)
    rate = "variable, about" if done.recording.variable_frame_rate else "constant"
    typer.echo(
        f"{done.folder}: {done.frames:,} frames, {done.recording.width}x{done.recording.height}, "
        f"{rate} {done.recording.fps:g} fps, {done.episodes} episodes, "
        f"{len(done.recording.actions)} actions, {done.unlabelled:,} frames without one"
    )


@command.command("images")
def images(
    folder: Annotated[Path, typer.Argument(help="Images, or folders of them (classes).")],
    name: Name = None,
    game: Game = None,
    licence: Licence = "unknown",
    out: Out = DATA,
    max_pixels: Annotated[
        int, typer.Option(min=64, help="Larger images are set aside undecoded.")
    ] = 16_777_216,
    link: Link = False,
) -> None:
    """Import the images in FOLDER; each is an episode of its own, without actions."""
    from iwm.gameplay.sources.images import import_images

    done = import_images(
        folder, out, name=name, game=game, licence=licence, max_pixels=max_pixels, link=link
    )
    for file, reason in done.set_aside:
        typer.echo(f"set aside: {file}: {reason}", err=True)
    typer.echo(f"{done.folder}: {done.images:,} images, {len(done.set_aside):,} set aside")

"""`iwm capture`: record the screen, the keyboard and the mouse while a person plays."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines._stage import DATA, run


def capture(
    name: Annotated[str, typer.Argument(help="Name of the recording.")],
    game: Annotated[str | None, typer.Option(help="Name of the game.")] = None,
    licence: Annotated[str, typer.Option(help="Licence of the material.")] = "own recording",
    out: Annotated[Path, typer.Option(help="Folder of recordings.")] = DATA,
    fps: Annotated[float, typer.Option(min=1, max=120, help="Frames a second.")] = 20.0,
    window: Annotated[
        str | None, typer.Option(help="Capture the window whose title holds this (X11).")
    ] = None,
    region: Annotated[
        str | None, typer.Option(help="Capture LEFT,TOP,WIDTH,HEIGHT of the screen.")
    ] = None,
    monitor: Annotated[int, typer.Option(min=0, help="Monitor; 0 is all of them.")] = 1,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="Stop by itself after so long.")
    ] = None,
    stop_key: Annotated[str, typer.Option(help="Key that stops the capture.")] = "f12",
    mapping: Annotated[
        Path | None, typer.Option(help="YAML: keys held, as in w+space, -> action name.")
    ] = None,
    codec: Annotated[str, typer.Option(help="h264 or ffv1 (lossless).")] = "h264",
    episode_seconds: Annotated[
        float, typer.Option(min=0, help="Cut the play into pieces; 0: do not.")
    ] = 30.0,
) -> None:
    """Capture a window or the screen with the keys and mouse buttons held, frame by frame."""
    from iwm.errors import ConfigError
    from iwm.gameplay.sources.capture import CaptureConfig, read_mapping
    from iwm.gameplay.sources.capture import capture as start
    from iwm.settings import parse

    box = None
    if region is not None:
        try:
            box = tuple(int(part) for part in region.split(","))
        except ValueError:
            box = ()
        if len(box) != 4:
            raise ConfigError(f"--region {region}: expected LEFT,TOP,WIDTH,HEIGHT")
    values = {
        "name": name,
        "game": game or name,
        "licence": licence,
        "fps": fps,
        "window": window,
        "region": box,
        "monitor": monitor,
        "seconds": seconds,
        "stop_key": stop_key.lower(),
        "mapping": read_mapping(mapping) if mapping else {},
        "codec": codec,
        "episode_seconds": episode_seconds,
    }
    done = start(out, parse(CaptureConfig, values, "capture"))
    typer.echo(
        f"{done.folder}: {done.frames:,} frames, {done.fps:.2f} of {fps:g} fps, "
        f"{done.late} late, {len(done.actions)} actions"
    )


if __name__ == "__main__":
    run(capture)

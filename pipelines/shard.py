"""`iwm shard`: WebDataset tars with a parquet index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines._stage import DATA, INDEX, SHARDS, run


def shard(
    data: Annotated[Path, typer.Option(help="Folder of recordings.")] = DATA,
    index: Annotated[Path, typer.Option(help="Folder of the index.")] = INDEX,
    out: Annotated[Path, typer.Option(help="Folder of the shards.")] = SHARDS,
) -> None:
    """Resize and encode the usable frames into WebDataset tars, one split a tar."""
    from rich.console import Console
    from rich.table import Table

    from iwm.config import load_params
    from iwm.data.shards import write_shards
    from iwm.files import only_one

    with only_one(out):
        made = write_shards(data, index, out, load_params().shard)
    title = f"{made.width}x{made.height} {made.format} shards, data {made.revision[:12]}"
    table = Table("", "episodes", "frames", "shards", "MB", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for split, frames in made.frames.items():
        files = [file for file in made.shards if file.split == split]
        size = sum(file.bytes for file in files) / 1e6
        row = (made.episodes[split], frames, len(files))
        table.add_row(split, *(f"{value:,}" for value in row), f"{size:,.1f}")
    Console().print(table)
    for split, frames in made.frames.items():
        if not frames:
            typer.echo(f"warning: the split {split} is empty", err=True)


if __name__ == "__main__":
    run(shard)

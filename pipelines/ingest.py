"""`iwm ingest`: decode every frame once, write the index, set aside what cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines._stage import DATA, INDEX, run


def ingest(
    data: Annotated[Path, typer.Option(help="Folder of recordings.")] = DATA,
    out: Annotated[Path, typer.Option(help="Folder of the index.")] = INDEX,
) -> None:
    """Decode every frame once; write the index, set aside what cannot be used."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from iwm.config import load_params
    from iwm.files import only_one
    from iwm.gameplay.index import SPLITS
    from iwm.gameplay.ingest import ingest as make_index

    with only_one(out):
        summary = make_index(data, out, load_params().ingest)
    for warning in summary.warnings:
        typer.echo(f"warning: {warning}", err=True)
    table = Table("", "episodes", "frames", title=f"index of {summary.recordings} recordings")
    for column in table.columns[1:]:
        column.justify = "right"
    for split in SPLITS:
        episodes, frames = summary.split_episodes[split], summary.split_frames[split]
        table.add_row(split, f"{episodes:,}", f"{frames:,}")
    table.add_row("set aside", "", f"{summary.quarantined:,} ({100 * summary.share:.2f} %)")
    for reason, count in summary.reasons.most_common():
        table.add_row(f"  {escape(reason)}", "", f"{count:,}")
    Console().print(table)
    if summary.reused:
        typer.echo(f"{summary.reused} recordings unchanged since the last run")


if __name__ == "__main__":
    run(ingest)

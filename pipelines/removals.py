"""Stage `removals`: objects that the games' engines take away, for the critic to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines._stage import REMOVALS, run


def removals(
    out: Annotated[Path, typer.Option(help="Folder of the sets, one a plan.")] = REMOVALS,
) -> None:
    """Take objects away in the midst of fresh episodes of the planned games.

    The episodes are none of those in data/, nor of the counterfactual sets. The same settings
    give the same bytes.
    """
    from rich.console import Console
    from rich.table import Table

    from iwm.config import load_params
    from iwm.data.removals import write_removals
    from iwm.files import only_one

    params = load_params()
    with only_one(out):
        made = write_removals(out, params.record, params.removals, params.shard)
    table = Table("", "objects", "episodes", "of the view")
    for column in table.columns[1:]:
        column.justify = "right"
    for found in made:
        shown = found.gone.mean() / 255
        episodes = len(set(found.episode.tolist()))
        table.add_row(found.name, f"{len(found):,}", f"{episodes:,}", f"{shown:.1%}")
    if made:
        Console().print(table)
    else:
        typer.echo("removals.plans names none: nothing was made")


if __name__ == "__main__":
    run(removals)

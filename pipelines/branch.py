"""Stage `branch`: counterfactual sets, recorded by branching the games; evaluation data only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines._stage import BRANCHES, run


def branch(
    out: Annotated[Path, typer.Option(help="Folder of the sets, one a plan.")] = BRANCHES,
) -> None:
    """Try every action from states of fresh episodes of the planned games.

    The episodes are none of those in data/, so no model was trained on them. The same settings
    give the same bytes.
    """
    from rich.console import Console
    from rich.table import Table

    from iwm.config import load_params
    from iwm.data.branches import write_branches
    from iwm.files import only_one

    params = load_params()
    with only_one(out):
        made = write_branches(out, params.record, params.branch, params.shard)
    table = Table("", "states", "episodes", "actions", "alike", "removed", "elsewhere", "MB")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, found in made.items():
        size = sum(file.stat().st_size for file in (out / name).iterdir()) / 1e6
        table.add_row(
            name,
            f"{len(found):,}",
            f"{len(set(found.episode.tolist())):,}",
            str(len(found.vocabulary)),
            f"{100 * found.alike().mean():.1f} %",
            f"{int(found.has_removed.sum()):,}",
            f"{int(found.has_teleported.sum()):,}",
            f"{size:,.1f}",
        )
    Console().print(table)
    typer.echo("alike: outcomes, of all tried, that look like another of the same state")


if __name__ == "__main__":
    run(branch)

"""`iwm record`: make `data/` where it is empty, by letting policies play games."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines._stage import DATA, run


def record(
    add: Annotated[
        bool, typer.Option("--add", help="Make the plans that are missing, beside other data.")
    ] = False,
    plan: Annotated[
        list[str] | None, typer.Option("--plan", help="Make only this plan; may be repeated.")
    ] = None,
) -> None:
    """Record the gameplay that params.yaml plans into data/, if data/ is empty.

    Nothing that is there is ever changed or removed. The same seed gives the same bytes. In a
    DVC checkout the recordings are added to DVC, so that data.dvc names them.
    """
    from iwm.config import load_params
    from iwm.gameplay.record import record as make
    from pipelines._repro import DATA_DVC, tell_mended, track_data

    tell_mended(Path())
    summary = make(DATA, load_params().record, add=add, only=plan or ())
    for line in summary.lines():
        typer.echo(line)
    # Not named although complete: a kill came between the two.
    if (summary.made or not DATA_DVC.exists()) and (said := track_data()):
        typer.echo(said)


if __name__ == "__main__":
    run(record)

"""`iwm demo`: from an empty clone to a served, gated, registered model."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from pipelines._stage import run


def command(
    record_only: Annotated[
        bool, typer.Option(help="Stop when the gameplay is recorded and named by data.dvc.")
    ] = False,
) -> None:
    """Record gameplay if there is none, run the graph, print what came out."""
    from pipelines import _repro
    from pipelines._summary import print_summary

    started = time.monotonic()
    _repro.ensure_data()
    if record_only:
        return
    _repro.repro()
    print_summary(elapsed_s=time.monotonic() - started)


if __name__ == "__main__":
    run(command)

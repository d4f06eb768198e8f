"""`iwm demo`: from an empty clone to a served, gated, registered model."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from pipelines._stage import run

IWM_PATH = ("core", "invariant", "equivariant", "action")
"""The phases of the image world model; the other families are left to `dvc repro`."""


def command(
    record_only: Annotated[
        bool, typer.Option(help="Stop when the gameplay is recorded and named by data.dvc.")
    ] = False,
) -> None:
    """Record gameplay if there is none, run the image world model's path, print what came out.

    That path is Phases 1 to 3: trained, measured, gated, registered, packed into a Bento that
    answers, and reported. `dvc repro` then adds the other families to registry, Bento and report.
    """
    from pipelines import _repro, package, report
    from pipelines._summary import print_summary

    started = time.monotonic()
    _repro.ensure_data()
    if record_only:
        return
    _repro.repro([f"register@{phase}" for phase in IWM_PATH])
    # Not as stages of the graph: there they stand behind every family.
    package.command()
    report.command()
    print_summary(elapsed_s=time.monotonic() - started)


if __name__ == "__main__":
    run(command)

"""The ``iwm`` command: one verb per stage, and the tools around them.

Verbs are found through the entry-point group ``iwm.commands``, so the library
never imports the pipelines above it. Modules behind verbs import heavy packages
inside their functions; ``iwm --help`` answers in well under a second.
"""

from __future__ import annotations

import sys
from importlib.metadata import entry_points, version
from typing import Annotated

import typer

from iwm import logs
from iwm.errors import one_line_errors
from iwm.monitoring.stages import observed, place

app = typer.Typer(
    name="iwm",
    help="From recorded gameplay to a served world model.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


def _version(shown: bool) -> None:
    if shown:
        typer.echo(version("iwm"))
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """From recorded gameplay to a served world model."""


def build() -> typer.Typer:
    """The command with every verb that is installed."""
    for entry in sorted(entry_points(group="iwm.commands"), key=lambda item: item.name):
        verb = entry.load()
        if isinstance(verb, typer.Typer):
            app.add_typer(verb, name=entry.name)
        else:
            app.command(entry.name)(verb)
    return app


def main() -> None:
    """Run ``iwm``; an error that is the user's to mend is one line and exit code 1."""
    stage, phase = place([word for word in sys.argv[1:] if word != "--"])
    with one_line_errors():
        # Standard output is the command's answer, which other programs may read.
        logs.configure(stage, phase, answers=True)
        with observed(stage, phase):
            build()()

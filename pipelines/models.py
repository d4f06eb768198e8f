"""`iwm models`: the ready-made models, and how good each is."""

from __future__ import annotations

from typing import Any

import typer

from pipelines._stage import run

_SHOWN = 3


def command() -> None:
    """List the ready-made models: `iwm serve --model NAME` serves one."""
    from rich.console import Console
    from rich.table import Table

    from iwm import zoo

    found = zoo.models()
    if not found:
        typer.echo(f"no ready-made models in {zoo.root()}")
        return
    table = Table(title="ready-made models", title_justify="left")
    for heading in ("name", "games", "weights", "actions", "figures [95 % interval]"):
        table.add_column(heading)
    for model in found:
        table.add_row(
            model.name,
            "\n".join(model.card.get("games") or ["-"]),
            f"{model.size / 1e6:.1f} MB",
            "\n".join(model.card.get("actions") or ["-"]),
            "\n".join(_figures(model.card)),
        )
    Console().print(table)


def _figures(card: dict[str, Any]) -> list[str]:
    """The first that the gate measured, a line each; the card in the folder has all."""
    from pipelines._summary import interval

    rules = (card.get("gate") or {}).get("rules", [])
    lines = list(dict.fromkeys(f"{rule['figure']} {interval(rule)}" for rule in rules)) or ["-"]
    return lines[:_SHOWN]


if __name__ == "__main__":
    run(command)

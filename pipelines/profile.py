"""`iwm profile`: show the profiles, or write one's values to params.yaml."""

from __future__ import annotations

from typing import Annotated

import typer

command = typer.Typer(help="Show the profiles, or choose one.", no_args_is_help=True)


@command.command("use")
def use(
    name: Annotated[str, typer.Argument(help="smoke, cpu, gpu, dual-gpu or cluster")],
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE over the profile, e.g. train.core.epochs=2"),
    ] = None,
) -> None:
    """Resolve profile NAME into params.yaml."""
    import yaml

    from iwm.config import resolve_profile, write_params
    from iwm.errors import ConfigError

    overrides = {}
    for assignment in assignments or []:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment}: expected KEY=VALUE")
        overrides[key] = yaml.safe_load(value)
    write_params(resolve_profile(name, overrides=overrides))
    typer.echo(f"params.yaml now holds profile {name}")


@command.command("list")
def show() -> None:
    """List the profiles; a star marks the one in force."""
    from iwm.config import PARAMS_FILE, PROFILES_FILE, read_yaml

    current = read_yaml(PARAMS_FILE).get("profile") if PARAMS_FILE.exists() else None
    for name in read_yaml(PROFILES_FILE).get("profiles", {}):
        typer.echo(f"{'*' if name == current else ' '} {name}")


if __name__ == "__main__":
    command()

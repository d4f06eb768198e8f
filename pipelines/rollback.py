"""`iwm rollback`: an earlier champion takes over again."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipelines._stage import SHARDS, run


def rollback(phase: str, to: str | None, reason: str) -> dict[str, Any]:
    """Move the alias ``champion`` of a phase back.

    The version that is taken out of service is tagged with the reason: registering the same
    evidence again does not promote it. Rolling back to such a version takes the tag away.

    Args:
        phase: whose champion.
        to: the version that takes over; ``None``: the champion before the present one.
        reason: for the registry's page.

    Returns:
        ``{"model", "from", "to"}``: the registered name and the two versions.

    Raises:
        TrackingError: no champion, none before it, no such version, one whose gate did not
            pass, or the registry cannot be reached.
    """
    from mlflow.exceptions import MlflowException

    from iwm.config import load_params
    from iwm.errors import TrackingError
    from pipelines import _registry
    from pipelines._mlflow import configure, one_line

    name = _registry.registered_name(load_params().register.model, phase)
    client = configure()
    champion = _registry.version_by_alias(client, name, _registry.CHAMPION)
    if champion is None:
        raise TrackingError(f"{name}: has no champion to roll back from")
    present = str(champion.version)
    past = [version for version in _registry.champions(client, name) if version != present]
    if to is None and not past:
        raise TrackingError(f"{name}: version {present} is the first champion; none was before it")
    wanted = past[-1] if to is None else to
    if wanted == present:
        raise TrackingError(f"{name}: version {wanted} is the champion already")
    try:
        version = client.get_model_version(name, wanted)
    except MlflowException:
        raise TrackingError(f"{name}: has no version {wanted}") from None
    if version.tags.get("gate") != "passed":
        raise TrackingError(f"{name} version {wanted}: its gate has not passed")
    try:
        if version.tags.get(_registry.ROLLED_BACK):
            client.delete_model_version_tag(name, wanted, _registry.ROLLED_BACK)
        # Before the alias moves: a stop in between leaves the champion, and a second try works.
        client.set_model_version_tag(name, present, _registry.ROLLED_BACK, reason)
        kept = past[: past.index(wanted)] if wanted in past else past
        _registry.crown(client, name, wanted, kept)
    except MlflowException as error:
        raise TrackingError(f"registry: {one_line(error)}") from None
    return {"model": name, "from": present, "to": wanted}


def command(
    phase: Annotated[
        str | None, typer.Argument(help="Whose champion; by default the one that answers.")
    ] = None,
    to: Annotated[
        str | None, typer.Option(help="The version that takes over; by default the one before.")
    ] = None,
    reason: Annotated[
        str, typer.Option(help="Why, for the registry's page.")
    ] = "rolled back by hand",
    bento: Annotated[
        bool, typer.Option(help="Build the Bento of the champions anew as well.")
    ] = True,
) -> None:
    """Put an earlier champion back in service, and pack it.

    A service that follows the registry (`iwm serve --poll`) takes it over by itself; others
    are started again with the new `iwm:latest`.
    """
    from iwm.config import load_params
    from pipelines import package

    params = load_params()
    done = rollback(phase or params.package.phase, to, reason)
    typer.echo(f"{done['model']}: version {done['to']} is champion again, {done['from']} is out")
    if not bento:
        return
    if not SHARDS.is_dir():
        typer.echo(f"{SHARDS}: not here, so no Bento was built; `iwm package` where the data is")
        return
    package.command()


if __name__ == "__main__":
    run(command)

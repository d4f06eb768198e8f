"""Flow ``ingest-gameplay``: recordings in, validated shards out, versioned by data.dvc."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from flows import graph
from flows.outcome import publish, settle
from flows.process import supervised
from flows.tasks import submit, use_profile
from iwm.errors import DataError
from pipelines._stage import DATA

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

TARGET = "shard"
MARK = "recording.json"


def find_recordings(path: Path) -> list[Path]:
    """The recording folders at or directly below ``path``.

    Raises:
        DataError: there is none.
    """
    if (path / MARK).is_file():
        return [path]
    found = sorted(mark.parent for mark in path.glob(f"*/{MARK}"))
    if not found:
        raise DataError(f"{path}: no {MARK} there, nor in a folder below it")
    return found


def _files(folder: Path) -> dict[str, Path]:
    return {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}


def _same(one: Path, other: Path) -> bool:
    import filecmp

    ours, theirs = _files(one), _files(other)
    return ours.keys() == theirs.keys() and all(
        filecmp.cmp(ours[name], theirs[name], shallow=False) for name in ours
    )


def copy_in(recording: Path, data: Path = DATA) -> bool:
    """Copy a recording folder into ``data/`` under its own name.

    Returns:
        Whether it was copied; ``False`` when the very same recording is there already.

    Raises:
        DataError: another recording has that name; nothing is overwritten.
    """
    import shutil

    from iwm.files import atomic_directory

    target = data / recording.name
    if target.exists():
        if _same(recording, target):
            return False
        raise DataError(f"{target}: another recording has that name; rename {recording}")
    with atomic_directory(target) as temporary:
        shutil.copytree(recording, temporary, dirs_exist_ok=True)
    return True


@task(name="import", cache_policy=NO_CACHE)
def import_recordings(paths: list[str]) -> list[str]:
    """Copy recordings into ``data/``; returns the names of the new ones."""
    log = get_run_logger()
    new = []
    for path in paths:
        for recording in find_recordings(Path(path).expanduser().resolve()):
            if copy_in(recording):
                new.append(recording.name)
                log.info("imported %s", recording)
            else:
                log.info("%s is in %s/ already", recording, DATA)
    return new


@flow(name="ingest-gameplay", task_runner=ThreadPoolTaskRunner(max_workers=16))  # type: ignore[arg-type]
def ingest_gameplay(
    paths: list[str] | None = None, profile: str | None = None, force: bool = False
) -> State[Any]:
    """Import recordings (or record when there are none), version them, ingest, validate, shard.

    Args:
        paths: folders that are recordings or hold recordings; copied into ``data/``.
        profile: written to params.yaml first; ``None`` keeps params.yaml as it is.
        force: run stages again even when nothing changed.
    """
    with supervised(str(flow_run.id)):
        if profile is not None:
            use_profile(profile)
        if paths:
            import_recordings(paths)
        futures = submit(graph.load().up_to([TARGET]), force=force, gpu="never")
        state = settle(futures)
        publish(futures, state)
        return state


if __name__ == "__main__":
    ingest_gameplay()

"""Flow ``ingest-gameplay``: recordings in, validated shards out, versioned by data.dvc."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner

from flows import graph
from flows.drop import MARK, Drop, recordings
from flows.notify import HOOKS
from flows.outcome import publish, settle
from flows.process import supervised
from flows.tasks import submit, use_profile
from iwm.errors import DataError
from pipelines._provenance import dvc_data_revision
from pipelines._stage import DATA

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

TARGET = "shard"
POLL_S = 2.0
"""Seconds between two looks into a drop folder."""
EXTENDED = "iwm.dataset.extended"
"""The event that says so; with ``then_train`` the deployment ``train-iwm`` is triggered by it."""


def find_recordings(path: Path) -> list[Path]:
    """The recording folders at or directly below ``path``.

    Raises:
        DataError: there is none.
    """
    found = recordings(path)
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


def announce(names: list[str], then_train: bool) -> None:
    """Tell Prefect's events that the dataset has a new version."""
    from prefect.events import emit_event

    revision = dvc_data_revision() or "unknown"
    emit_event(
        event=EXTENDED,
        resource={
            "prefect.resource.id": f"iwm.dataset.{revision}",
            "iwm.train": "true" if then_train else "false",
        },
        payload={"revision": revision, "recordings": names},
    )


@flow(name="ingest-gameplay", task_runner=ThreadPoolTaskRunner(max_workers=16), **HOOKS)  # type: ignore[arg-type]
def ingest_gameplay(
    paths: list[str] | None = None,
    profile: str | None = None,
    force: bool = False,
    drop: str | None = None,
    watch_s: float = 0.0,
    settle_s: float = 10.0,
    then_train: bool = False,
) -> State[Any]:
    """Import recordings (or record when there are none), version them, ingest, validate, shard.

    Args:
        paths: folders that are recordings or hold recordings; copied into ``data/``.
        profile: written to params.yaml first; ``None`` keeps params.yaml as it is.
        force: run stages again even when nothing changed.
        drop: a folder that is watched: recordings that arrive there while the flow runs are
            taken when their copy is whole. What is half there waits.
        watch_s: for how many seconds; 0: until everything there now has settled.
        settle_s: seconds without a change that end a copy.
        then_train: let the event of a new dataset version trigger ``train-iwm``.
    """
    with supervised(str(flow_run.id)):
        if profile is not None:
            use_profile(profile)
        if drop is None:
            return _shards(import_recordings(paths) if paths else [], force, then_train)
        return _watch(Drop(Path(drop).expanduser(), settle_s), watch_s, force, then_train)


def _shards(names: list[str], force: bool, then_train: bool) -> State[Any]:
    """Bring the shards up to date; announce what is new."""
    futures = submit(graph.load().up_to([TARGET]), force=force, gpu="never")
    state = settle(futures)
    publish(futures, state)
    if names and state.is_completed():
        announce(names, then_train)
    return state


def _watch(folder: Drop, watch_s: float, force: bool, then_train: bool) -> State[Any]:
    """Take what arrives; a round that fails ends the watch with its state."""
    log = get_run_logger()
    begin = time.monotonic()
    end = begin + max(watch_s, folder.settle_s + POLL_S)
    taken: set[str] = set()
    refused: dict[str, str] = {}
    new: list[str] = []
    said: dict[str, str] = {}
    while True:
        found = folder.look(frozenset(taken))
        waiting = {**found.waiting, **refused}
        for name, why in waiting.items():
            if said.get(name) != why:
                log.info("%s waits: %s", name, why)
        said = waiting
        names = []
        for recording in found.ready:
            taken.add(recording.name)
            try:
                names += import_recordings([str(recording)])
            except DataError as error:  # another recording has that name
                refused[recording.name] = str(error)
        if names:
            state = _shards(names, force, then_train)
            if not state.is_completed():
                return state
            new += names
        elif not found.ready and time.monotonic() >= end:
            break
        else:
            time.sleep(POLL_S)
    waits = "".join(f"; {name} waits: {why}" for name, why in said.items())
    return Completed(message=f"{len(new)} recordings taken{waits}")


if __name__ == "__main__":
    ingest_gameplay()

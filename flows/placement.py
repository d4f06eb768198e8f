"""Which accelerators a stage sees: one card each, side by side, or all cards for one stage.

``cards``: every stage that computes takes a free card and sees no other
(``CUDA_VISIBLE_DEVICES``, which ROCm's torch reads as well); as many run at once as the limit
``iwm-gpu`` and the number of cards allow, so that on two cards the invariant and the equivariant
stream train side by side. ``spread``: a training takes all cards and one process runs on each
(``IWM_PROCESSES``, see ``iwm train --help``); other stages take one.

A card is held by a lock file, so that two flow runs of a checkout do not share one either.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from flows.graph import group

Placement = Literal["cards", "spread"]

LOCKS = Path(".run")
VISIBLE = "CUDA_VISIBLE_DEVICES"
PROCESSES = "IWM_PROCESSES"
_POLL_S = 0.5


def cards(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The accelerators of this machine, as ``CUDA_VISIBLE_DEVICES`` names them.

    What that variable says already bounds them; else they are counted by their device nodes.
    """
    if VISIBLE in environ:
        return tuple(name for name in environ[VISIBLE].split(",") if name)
    nvidia = [path.name for path in Path("/dev").glob("nvidia[0-9]*")]
    if nvidia:
        return tuple(str(place) for place in range(len(nvidia)))
    renderers = list(Path("/dev/dri").glob("renderD*")) if Path("/dev/kfd").exists() else []
    return tuple(str(place) for place in range(len(renderers)))


@contextmanager
def placed(
    stage: str, placement: Placement, found: Sequence[str], locks: Path = LOCKS
) -> Iterator[dict[str, str]]:
    """Hold the card or cards for a stage; yields what its environment gets.

    Args:
        stage: name in dvc.yaml.
        placement: one card, or all for a training.
        found: the cards there are.
        locks: folder of the lock files.
    """
    if not found:
        yield {}
        return
    every = placement == "spread" and group(stage) == "train"
    with ExitStack() as held:
        if every:
            # In order, so that two that want all do not wait for each other.
            for card in found:
                held.enter_context(_lock(locks, card))
            yield {VISIBLE: ",".join(found), PROCESSES: str(len(found))}
        else:
            yield {VISIBLE: held.enter_context(_any(locks, found))}


@contextmanager
def _lock(locks: Path, card: str) -> Iterator[str]:
    from filelock import FileLock

    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"card-{card.replace('/', '-')}.lock", thread_local=False):
        yield card


@contextmanager
def _any(locks: Path, found: Sequence[str]) -> Iterator[str]:
    """The first card that is free; waits for one."""
    from filelock import FileLock, Timeout

    locks.mkdir(parents=True, exist_ok=True)
    while True:
        for card in found:
            lock = FileLock(locks / f"card-{card.replace('/', '-')}.lock", thread_local=False)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                yield card
            finally:
                lock.release()
            return
        time.sleep(_POLL_S)

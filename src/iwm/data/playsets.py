"""Sets of arrays that are made by playing the planned games: in parallel, and on disk.

A set is a folder with one ``.npy`` file for each array and a JSON file that describes it. It
appears whole or not at all; the same settings give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from iwm.data.config import ShardConfig
from iwm.data.frames import Image8, decoder, encode_frame, resize_frame
from iwm.errors import ConfigError, DataError
from iwm.files import atomic_directory, read_json, write_json
from iwm.gameplay.config import RecordConfig, RecordPlan
from iwm.gameplay.executor import process_pool
from iwm.progress import Progress
from iwm.settings import parse, to_dict
from iwm.versions import Format

Meta = TypeVar("Meta")
Array = np.ndarray[Any, Any]

_POLL_S = 0.2


class ShardFrames:
    """Frames as training sees them: resized, compressed, decoded."""

    def __init__(self, shard: ShardConfig) -> None:
        self._shard = shard
        self.shape = (shard.height, shard.width, 3)
        self._decode = decoder(shard.format, self.shape)

    def __call__(self, frame: Image8) -> Image8:
        """A frame [H, W, 3] at the size of the shards."""
        out = np.empty(self.shape, np.uint8)
        self._decode(encode_frame(resize_frame(frame, self._shard), self._shard), out)
        return out


# -- on disk ---------------------------------------------------------------------------


def save_set(folder: Path, file: str, meta: object, arrays: Mapping[str, Array]) -> None:
    """Write a set.

    Args:
        folder: of the set.
        file: name of the JSON file.
        meta: settings with ``version`` and ``states``, the length of every array.
        arrays: by name.
    """
    with atomic_directory(folder) as temporary:
        for name, values in arrays.items():
            np.save(temporary / f"{name}.npy", values, allow_pickle=False)
        write_json(temporary / file, to_dict(meta))


def load_set(
    folder: Path, file: str, form: Format, meta: type[Meta], names: Sequence[str], maker: str
) -> tuple[Meta, dict[str, Any]]:
    """Read a set; arrays are memory-mapped, read only.

    Args:
        folder: of the set.
        file: name of the JSON file.
        form: its format.
        meta: class of the settings in it.
        names: of the arrays.
        maker: the command that makes such sets.

    Raises:
        DataError: missing, damaged, or written by a newer version.
    """
    path = folder / file
    try:
        values = read_json(path)
        form.check(values.get("version") if isinstance(values, dict) else None, path)
        described = parse(meta, values, str(path))
    except FileNotFoundError:
        raise DataError(f"{path}: not found; run `{maker}`") from None
    except (ValueError, ConfigError) as error:
        raise DataError(f"{path}: {' '.join(str(error).split())}") from None
    arrays: dict[str, Any] = {}
    for name in names:
        place = folder / f"{name}.npy"
        try:
            arrays[name] = np.load(place, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{place}: {' '.join(str(error).split())}") from None
        states = values["states"]
        if len(arrays[name]) != states:
            raise DataError(f"{place}: holds {len(arrays[name])} states, {file} says {states}")
    return described, arrays


# -- made in parallel ------------------------------------------------------------------

_counter: Any = None
"""In a worker: what all workers have made, shared with the parent."""


def _set_counter(counter: Any) -> None:
    global _counter
    _counter = counter


def count(made: int) -> None:
    """In a worker: tell the progress bar."""
    with _counter.get_lock():
        _counter.value += made


def write_sets(
    out_dir: Path,
    what: str,
    unit: str,
    record: RecordConfig,
    wanted: Sequence[tuple[str, int]],
    make: Callable[[Path, RecordPlan, int], None],
    workers: int,
) -> None:
    """Make every set that is wanted, in parallel; all of them or none.

    Args:
        out_dir: made or replaced; one folder a plan.
        what: the section of the configuration, for errors and the progress bar.
        unit: what is counted.
        record: the plans.
        wanted: names of plans, and how many of each.
        make: makes one set in a worker, and calls :func:`count`.
        workers: processes; a process makes whole sets.

    Raises:
        ConfigError: a name that is no plan, or a plan that does not fit its game.
        DataError: a game does not start, or its process died.
    """
    plans = {plan.name: plan for plan in record.plans}
    sizes = dict(wanted)
    if unknown := [name for name in sizes if name not in plans]:
        raise ConfigError(
            f"{what}.plans: no plan {unknown[0]!r}; record.plans has {', '.join(plans)}"
        )
    if len(sizes) < len(wanted):
        raise ConfigError(f"{what}.plans: a plan is named twice")
    counter = get_context("spawn").Value("q", 0)
    # The largest first, so that no process is left with a large one at the end.
    order = sorted(sizes, key=lambda name: -sizes[name])
    with (
        Progress(what, sum(sizes.values()), unit) as progress,
        atomic_directory(out_dir) as folder,
        process_pool(max(1, min(workers, len(order))), _set_counter, (counter,)) as pool,
    ):
        waiting = {pool.submit(make, folder / name, plans[name], sizes[name]) for name in order}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=_POLL_S, return_when=FIRST_COMPLETED)
                progress.advance(counter.value - progress.done)
                for future in done:
                    future.result()
        except BrokenProcessPool:
            raise DataError(f"{what}: a game's process died; see the lines above") from None
        finally:
            for future in waiting:
                future.cancel()

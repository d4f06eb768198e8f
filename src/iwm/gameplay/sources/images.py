"""Import of a folder of still images, as ImageNet lays them out, for Phase 1.

Every image is an episode of its own, because splits are by episode and two images
have nothing to do with each other. There are no actions. The name of the folder an
image lies in (its class) is kept in ``recording.json`` under ``extra.classes``.
"""

from __future__ import annotations

import concurrent.futures
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from iwm.errors import DataError
from iwm.gameplay.images import SUFFIXES, printable, read_image
from iwm.gameplay.schema import NO_ACTION, Recording, write_recording
from iwm.gameplay.sources._importing import new_recording, place, slug, write_steps
from iwm.progress import Progress, track

MIN_SIDE = 8
"""Smaller images are set aside: nothing can be learned from them."""
SET_ASIDE_FOLDER = "set-aside"
FRAMES_FOLDER = "frames"


@dataclass(frozen=True)
class ImagesImport:
    """What was imported, for the last line of the command."""

    folder: Path
    recording: Recording
    images: int
    set_aside: tuple[tuple[str, str], ...]
    """File and reason of each image that cannot be used."""


def import_images(
    source: Path,
    data_dir: Path,
    *,
    name: str | None = None,
    game: str | None = None,
    licence: str = "unknown",
    max_pixels: int = 16_777_216,
    link: bool = False,
    workers: int = 2,
) -> ImagesImport:
    """Make a recording of the images in a folder and the folders below it.

    Every image is decoded once to see that it can be. Those that cannot go to
    ``set-aside/`` in the recording, listed with their reasons in
    ``extra.set_aside``; files that are not images by their ending are counted. The
    source folder is only read.

    Args:
        source: the folder.
        data_dir: where the recording's folder is made.
        name: name of the recording; by default the folder's.
        game: what the images show; by default the recording's name.
        licence: under which the material may be used.
        max_pixels: larger images are set aside undecoded.
        link: hard-link instead of copying, where that is possible.
        workers: threads that decode.

    Raises:
        DataError: no such folder, no image that can be used, or writing failed.
    """
    where = printable(source)
    if not source.is_dir():
        raise DataError(f"{where}: not a folder")
    found, others = _find(source)
    if not found:
        raise DataError(f"{where}: no images ({', '.join(sorted(SUFFIXES))}) in it or below it")

    def examine(file: Path) -> tuple[int, int] | str:
        try:
            height, width = read_image(file, max_pixels).shape[:2]
        except DataError as error:
            return str(error).removeprefix(f"{printable(file)}: ")
        if min(width, height) < MIN_SIDE:
            return f"{width}x{height} is smaller than {MIN_SIDE}x{MIN_SIDE}"
        return width, height

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        verdicts = list(track(pool.map(examine, found), "check", len(found), "images"))
    good = [
        (file, verdict)
        for file, verdict in zip(found, verdicts, strict=True)
        if not isinstance(verdict, str)
    ]
    bad = [
        (file, verdict)
        for file, verdict in zip(found, verdicts, strict=True)
        if isinstance(verdict, str)
    ]
    if not good:
        raise DataError(
            f"{where}: none of {len(found)} images can be used; the first, "
            f"{printable(bad[0][0].name)}: {bad[0][1]}"
        )
    title = slug(name or source.resolve().name)
    classes = [printable(file.relative_to(source).parent) for file, _ in good]
    labels = sorted(set(classes))
    recording = Recording(
        name=title,
        source="images",
        game=game or title,
        fps=1.0,
        width=int(np.median([size[0] for _, size in good])),
        height=int(np.median([size[1] for _, size in good])),
        frames_path=FRAMES_FOLDER,
        actions=(),
        licence=licence,
        software={"iwm": version("iwm")},
        extra={
            "classes": [] if labels == ["."] else labels,
            "files": [printable(file.relative_to(source)) for file, _ in good],
            "other_files": others,
            "set_aside": [
                {"file": printable(file.relative_to(source)), "reason": reason}
                for file, reason in bad
            ],
        },
    )
    total = sum(file.stat().st_size for file in found)
    with new_recording(data_dir, title) as folder:
        with Progress(f"copy {title}", total, "bytes") as progress:
            for kept, files in (
                (FRAMES_FOLDER, [file for file, _ in good]),
                (SET_ASIDE_FOLDER, [file for file, _ in bad]),
            ):
                for position, file in enumerate(files):
                    # A number in front keeps the order and the names apart once made plain.
                    target = folder / kept / f"{position:08d}-{slug(file.stem)}{_suffix(file)}"
                    target.parent.mkdir(exist_ok=True)
                    place(file, target, link, progress)
        write_steps(folder, _columns(len(good)))
        write_recording(folder, recording)
    return ImagesImport(
        data_dir / title,
        recording,
        len(good),
        tuple((printable(file), reason) for file, reason in bad),
    )


def _suffix(file: Path) -> str:
    return file.suffix.lower()


def _find(source: Path) -> tuple[list[Path], int]:
    """Images in order of their path's bytes, and how many other files there are."""
    found: list[Path] = []
    others = 0
    for root, folders, names in os.walk(source):
        folders[:] = [folder for folder in folders if not folder.startswith(".")]
        for file in (Path(root) / name for name in names if not name.startswith(".")):
            if file.suffix.lower() in SUFFIXES and file.is_file():
                found.append(file)
            else:
                others += 1
    return sorted(found, key=lambda file: os.fsencode(file.relative_to(source))), others


def _columns(count: int) -> dict[str, object]:
    positions = np.arange(count)
    return {
        "episode": positions.astype(np.int32),
        "step": np.zeros(count, np.int32),
        "time_s": positions.astype(np.float64),
        "frame": positions.astype(np.int64),
        "action": np.full(count, NO_ACTION, np.int32),
        "action_vector": [None] * count,
        "reward": np.zeros(count, np.float32),
        "done": np.zeros(count, np.bool_),
    }

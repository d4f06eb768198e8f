"""Import of a video with an action log: what OBS and a key logger leave behind.

The video goes into the recording untouched; ``steps.parquet`` says, frame by frame,
when it is shown and which action was in force (the rule stands in
:mod:`iwm.gameplay.sources.actionlog`). Times count from the first video frame, by
presentation time stamps, so variable frame rates, B-frames, edit lists and audio
tracks make no difference.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iwm.errors import DataError
from iwm.gameplay.images import printable
from iwm.gameplay.reader import scan_video
from iwm.gameplay.schema import Recording, write_recording
from iwm.gameplay.sources._importing import new_recording, place, slug, write_steps
from iwm.gameplay.sources.actionlog import FrameActions, align, read_log, vocabulary
from iwm.progress import Progress

MIN_SIDE = 8
"""Smaller frames are not gameplay."""

# Half of this is what Matroska's rounding to milliseconds can do to a time stamp.
_JITTER_S = 0.002


@dataclass(frozen=True)
class VideoImport:
    """What was imported, for the last line of the command."""

    folder: Path
    recording: Recording
    frames: int
    episodes: int
    unlabelled: int
    """Frames without an action, besides the last of each episode."""
    warnings: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class _Clip:
    times_s: NDArray[np.float64]
    width: int
    height: int
    fps: float
    variable: bool
    damage: str | None


def import_video(
    video: Path,
    log: Path,
    data_dir: Path,
    *,
    name: str | None = None,
    game: str | None = None,
    licence: str = "unknown",
    offset_s: float = 0.0,
    actions: tuple[str, ...] | None = None,
    episode_s: float = 30.0,
    tolerance_s: float = 1.0,
    accept_longer_log: bool = False,
    allow_truncated: bool = False,
    link: bool = False,
) -> VideoImport:
    """Make a recording of a video and its action log.

    Args:
        video: any container PyAV reads; the first video track counts, audio is kept, not read.
        log: see :func:`~iwm.gameplay.sources.actionlog.read_log`.
        data_dir: where the recording's folder is made.
        name: name of the recording; by default the video's.
        game: name of the game; by default the recording's name.
        licence: under which the material may be used.
        offset_s: added to the log's times to give seconds since the first video frame.
        actions: the whole vocabulary; anything else in the log is an error.
        episode_s: pieces into which an unbroken play is cut; 0 leaves it whole.
        tolerance_s: by how much the log may outlast the video.
        accept_longer_log: leave out, and count, the rows after the end of the video.
        allow_truncated: import a video that was cut off, up to the cut.
        link: hard-link the video instead of copying it, where that is possible.

    Raises:
        DataError: one line with the file and the reason; nothing is left behind.
    """
    where = printable(video)
    clip = _examine(video)
    warnings = []
    if clip.damage:
        if not allow_truncated:
            raise DataError(
                f"{where}: cut off or damaged: {clip.damage}; --allow-truncated imports its "
                f"{len(clip.times_s)} readable frames"
            )
        warnings.append(f"cut off or damaged: {clip.damage}")
    entries = read_log(log)
    names = vocabulary(entries, actions)
    last_s = float(np.median(np.diff(clip.times_s))) if len(clip.times_s) > 1 else 1.0 / clip.fps
    end_s = float(clip.times_s[-1]) + last_s
    begins, ends = float(entries.times_s[0]) + offset_s, float(entries.times_s[-1]) + offset_s
    beyond = int((entries.times_s + offset_s >= end_s).sum())
    if begins >= end_s:
        raise DataError(
            f"{entries.file}: begins at {begins:.3f} s, but {where} is only {end_s:.3f} s long; "
            "is --offset right?"
        )
    if ends > end_s + tolerance_s and not (accept_longer_log or clip.damage):
        raise DataError(
            f"{entries.file}: log ends at {ends:.3f} s, but {where} is only {end_s:.3f} s long; "
            "mend --offset, or leave the rest out with --accept-longer-log"
        )
    if beyond:
        warnings.append(f"{beyond} log rows after the end of the video at {end_s:.3f} s left out")
    laid = align(
        entries, names, clip.times_s, offset_s=offset_s, last_s=last_s, episode_s=episode_s
    )
    title = slug(name or video.stem)
    recording = Recording(
        name=title,
        source="video",
        game=game or title,
        fps=clip.fps,
        width=clip.width,
        height=clip.height,
        frames_path=f"frames{_suffix(video)}",
        variable_frame_rate=clip.variable,
        actions=names,
        action_dim=0 if entries.vectors is None else entries.vectors.shape[1],
        licence=licence,
        software={"iwm": version("iwm"), "av": version("av")},
        extra={
            "video": printable(video.name),
            "log": printable(log.name),
            "offset_s": offset_s,
            "warnings": warnings,
        },
    )
    with new_recording(data_dir, title) as folder:
        with Progress(f"copy {printable(video.name)}", video.stat().st_size, "bytes") as progress:
            place(video, folder / recording.frames_path, link, progress)
        write_steps(folder, _columns(clip.times_s, laid))
        write_recording(folder, recording)
    episodes = int(laid.episode[-1]) + 1
    return VideoImport(
        data_dir / title,
        recording,
        len(clip.times_s),
        episodes,
        max(0, int((~laid.in_force).sum()) - episodes),
        tuple(warnings),
    )


def _suffix(video: Path) -> str:
    suffix = video.suffix.lower()
    return suffix if suffix[1:].isalnum() and suffix.isascii() else ".mkv"


def _columns(times_s: NDArray[np.float64], laid: FrameActions) -> dict[str, Any]:
    first = np.searchsorted(laid.episode, laid.episode, side="left")
    vectors: list[list[float] | None] = [None] * len(times_s)
    if laid.vectors is not None:
        vectors = [
            row if known else None
            for row, known in zip(laid.vectors.tolist(), laid.in_force, strict=True)
        ]
    positions = np.arange(len(times_s), dtype=np.int64)
    return {
        "episode": laid.episode,
        "step": (positions - first).astype(np.int32),
        "time_s": times_s,
        "frame": positions,
        "action": laid.action,
        "action_vector": vectors,
        "reward": laid.reward,
        "done": laid.done,
    }


@contextmanager
def _readable_name(video: Path) -> Iterator[Path]:
    """FFmpeg takes UTF-8 names only: others are read through a link."""
    if printable(video) == str(video):
        yield video
        return
    with tempfile.TemporaryDirectory() as folder:
        alias = Path(folder) / "video"
        alias.symlink_to(video.resolve())
        yield alias


def _examine(video: Path) -> _Clip:
    where = printable(video)
    try:
        size = video.stat().st_size
    except OSError as error:
        raise DataError(f"{where}: {error.strerror}") from None
    if not video.is_file():
        raise DataError(f"{where}: not a file")
    if size == 0:
        raise DataError(f"{where}: the file is empty (zero bytes)")
    with _readable_name(video) as path:
        try:
            scan = scan_video(path)
        except DataError as error:
            raise DataError(str(error).replace(str(path), where)) from None
        promised_frames, promised_s = _promised(path)
    if min(scan.width, scan.height) < MIN_SIDE:
        raise DataError(
            f"{where}: {scan.width}x{scan.height} is smaller than {MIN_SIDE}x{MIN_SIDE}"
        )
    times = scan.times_s - scan.times_s[0]
    gaps = np.diff(times)
    if len(gaps) and gaps.min() <= 0:
        raise DataError(f"{where}: frames {int(np.argmin(gaps))} and the next share a time stamp")
    fps = 1.0 if not len(gaps) else len(gaps) / float(times[-1])
    variable = bool(len(gaps) and np.abs(gaps - np.median(gaps)).max() > _JITTER_S)
    return _Clip(
        times_s=times,
        width=scan.width,
        height=scan.height,
        fps=round(fps, 4),
        variable=variable,
        damage=scan.damage or _missing(len(times), scan.times_s, promised_frames, promised_s),
    )


def _promised(path: Path) -> tuple[int, float]:
    """What the header says: frames (0: unknown) and the end of the video track (0: unknown)."""
    import av

    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.video[0]
        tag = stream.metadata.get("DURATION", "")  # Matroska's length of one track
        seconds = 0.0
        if tag.count(":") == 2:
            hours, minutes, rest = tag.split(":")
            try:
                seconds = int(hours) * 3600 + int(minutes) * 60 + float(rest)
            except ValueError:
                seconds = 0.0
        return int(stream.frames), seconds


def _missing(
    frames: int, times_s: NDArray[np.float64], promised_frames: int, promised_s: float
) -> str | None:
    if promised_frames > frames:
        return f"the header says {promised_frames} frames, the file holds {frames}"
    last = float(np.median(np.diff(times_s))) if frames > 1 else 0.0
    end = float(times_s[-1]) + last
    if promised_s > end + max(0.1, 2 * last):
        return f"the header says {promised_s:.3f} s, the frames end at {end:.3f} s"
    return None

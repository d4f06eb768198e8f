"""Reading recordings: the step table, and frames in order of their position.

Positions are counted over the file's packets in order of presentation, so a frame
keeps its position when others before it cannot be decoded, whatever the frame rate.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from iwm.errors import DataError
from iwm.gameplay.schema import NO_ACTION, STEPS_FILE, STEPS_SCHEMA, Recording, read_recording
from iwm.gameplay.writer import STEPS_LOG

MAX_PIXELS = 16_777_216

_PROBED = 8  # packets in which checksums are looked for, should the first be damaged
_FOOTER = 8  # bytes of an FFV1 slice footer with a checksum: size 3, error status 1, CRC 4
_MIRRORED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


@dataclass(frozen=True)
class DecodedFrame:
    """One frame as decoded, or why it could not be."""

    frame: int
    """Position in the frames file or folder, from 0."""
    image: npt.NDArray[np.uint8] | None
    """RGB ``[height, width, 3]``; ``None`` if there is an ``error``."""
    error: str | None = None


@dataclass(frozen=True)
class VideoScan:
    """What the packets of a video say, before anything is decoded."""

    pts: npt.NDArray[np.int64]
    """Presentation time of each frame ``[frames]``, ascending, in units of ``time_base``."""
    time_base: Fraction
    keyframes: npt.NDArray[np.int64]
    """Presentation times of the frames that decode alone, ascending."""
    width: int
    height: int
    checksums: bool
    """Whether each packet carries checksums that :func:`slices_intact` knows."""
    damage: str | None
    """Why reading the file stopped early, if it did."""

    @property
    def times_s(self) -> npt.NDArray[np.float64]:
        """Seconds of each frame on the file's own clock (the first need not be 0)."""
        return self.pts.astype(np.float64) * float(self.time_base)


def read_steps(folder: Path) -> pa.Table:
    """The steps of a recording, :data:`STEPS_SCHEMA`.

    A recording that was cut off is recovered: every step whose frame is whole in the
    file, the last one without its action, since what that led to was not recorded.

    Raises:
        DataError: no table and no log, not parquet, or other columns.
    """
    import pyarrow.parquet as pq

    path = folder / STEPS_FILE
    if not path.exists():
        if (folder / STEPS_LOG).exists():
            return _recover_steps(folder)
        raise DataError(f"{path}: not found")
    try:
        table = pq.ParquetFile(path).read()
        return table.select(STEPS_SCHEMA.names).cast(STEPS_SCHEMA)
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise DataError(f"{path}: not a step table: {' '.join(str(error).split())}") from None


def _recover_steps(folder: Path) -> pa.Table:
    rows: list[list[Any]] = []
    for line in (folder / STEPS_LOG).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break  # the line that was being written at the cut
        rows.append(row)
    video = folder / read_recording(folder).frames_path
    try:
        frames = len(scan_video(video).pts)
    except DataError:
        frames = 0  # cut before the first cluster reached the file
    rows = rows[:frames]
    columns = dict(zip(STEPS_SCHEMA.names, zip(*rows, strict=True), strict=True)) if rows else {}
    try:
        table = pa.table(
            {name: list(columns.get(name, ())) for name in STEPS_SCHEMA.names}, schema=STEPS_SCHEMA
        )
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"{folder / STEPS_LOG}: not a step log: {error}") from None
    return _without_last_action(table)


def _without_last_action(table: pa.Table) -> pa.Table:
    if not table.num_rows or table["action"][-1].as_py() == NO_ACTION:
        return table
    last = table.slice(table.num_rows - 1).to_pylist()[0]
    last |= {"action": NO_ACTION, "action_vector": None, "reward": 0.0, "done": False}
    end = pa.Table.from_pylist([last], schema=STEPS_SCHEMA)
    return pa.concat_tables([table.slice(0, table.num_rows - 1), end])


def scan_video(path: Path, max_pixels: int = MAX_PIXELS) -> VideoScan:
    """Read a video's packets without decoding: how many frames, when, which decode alone.

    Raises:
        DataError: not a video, no video stream, no frames, or frames of too many pixels.
    """
    import av

    pts: list[int] = []
    keyframes: list[int] = []
    checksums, damage = False, None
    try:
        with _open(path) as container:
            stream = container.streams.video[0]
            context = stream.codec_context
            width, height, codec = context.width, context.height, context.name
            time_base = Fraction(stream.time_base or Fraction(1, 1000))
            try:
                for packet in container.demux(stream):
                    time = packet.dts if packet.pts is None else packet.pts
                    if not packet.size or time is None or packet.is_discard or packet.is_corrupt:
                        continue
                    if codec == "ffv1" and len(pts) < _PROBED and not checksums:
                        checksums = slices_intact(bytes(packet))
                    pts.append(time)
                    if packet.is_keyframe:
                        keyframes.append(time)
            except av.error.FFmpegError as error:
                damage = _reason(error)
    except (av.error.FFmpegError, IndexError) as error:
        reason = "no video stream" if isinstance(error, IndexError) else _reason(error)
        raise DataError(f"{path}: cannot be read as a video: {reason}") from None
    if not pts:
        raise DataError(f"{path}: holds no frames")
    if width * height > max_pixels:
        raise DataError(f"{path}: {width}x{height} is over the bound of {max_pixels} pixels")
    return VideoScan(
        np.sort(np.asarray(pts, np.int64)),
        time_base,
        np.sort(np.asarray(keyframes, np.int64)),
        width,
        height,
        checksums,
        damage,
    )


def slices_intact(packet: bytes) -> bool:
    """Whether every slice of an FFV1 version 3 packet matches its CRC (RFC 9043, 4.9).

    The CRC's polynomial is zlib's with bits in the other order, so bytes are mirrored
    first; a slice together with its CRC has remainder 0.
    """
    end = len(packet)
    while end > 0:
        if end < _FOOTER:
            return False
        size = int.from_bytes(packet[end - _FOOTER : end - _FOOTER + 3], "big") + _FOOTER
        if size > end:
            return False
        slice_ = packet[end - size : end].translate(_MIRRORED)
        if zlib.crc32(slice_, 0xFFFFFFFF) ^ 0xFFFFFFFF:
            return False
        end -= size
    return True


def image_files(folder: Path) -> list[Path]:
    """The images of an image folder in order of position: all files below it, by path.

    Hidden files are left out. Paths are compared as bytes, so names that are not UTF-8
    have their place too.
    """
    files = [
        Path(root) / name
        for root, _, names in os.walk(folder)
        for name in names
        if not name.startswith(".")
    ]
    return sorted(files, key=lambda file: os.fsencode(file.relative_to(folder)))


def iter_frames(
    folder: Path,
    recording: Recording,
    wanted: Sequence[int] | npt.NDArray[np.int64] | None = None,
    *,
    threads: int = 1,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[DecodedFrame]:
    """Decode frames in order of position.

    Args:
        folder: the recording's folder.
        recording: its metadata; ``frames_path`` names a video or a folder of images.
        wanted: positions, ascending; ``None`` for all that the file holds.
        threads: decoder threads for a video.
        max_pixels: bound on a frame's size, checked before anything is decoded.

    Yields:
        One :class:`DecodedFrame` for every wanted position, also for those that cannot be
        decoded or lie behind the end of the file.

    Raises:
        DataError: nothing can be read at all: not a video, no such folder.
    """
    path = folder / recording.frames_path
    if path.is_dir():
        yield from _iter_images(path, wanted, max_pixels)
    elif path.exists():
        yield from _iter_video(path, wanted, threads, max_pixels)
    else:
        raise DataError(f"{path}: not found")


def _iter_images(
    path: Path, wanted: Sequence[int] | npt.NDArray[np.int64] | None, max_pixels: int
) -> Iterator[DecodedFrame]:
    from iwm.gameplay.images import decode_image

    files = image_files(path)
    for frame in range(len(files)) if wanted is None else map(int, wanted):
        if frame >= len(files):
            yield DecodedFrame(frame, None, f"the folder holds {len(files)} images")
            continue
        try:
            yield DecodedFrame(frame, decode_image(files[frame].read_bytes(), max_pixels))
        except (DataError, OSError) as error:
            yield DecodedFrame(frame, None, str(error))


def _iter_video(
    path: Path,
    wanted: Sequence[int] | npt.NDArray[np.int64] | None,
    threads: int,
    max_pixels: int,
) -> Iterator[DecodedFrame]:
    import av

    scan = scan_video(path, max_pixels)
    asked = list(range(len(scan.pts))) if wanted is None else [int(frame) for frame in wanted]
    if not asked:
        return
    end = f"the file ends after {len(scan.pts)} frames"
    if scan.damage:
        end += f": {scan.damage}"
    reformatter: Any = av.video.reformatter.VideoReformatter()
    reason = "not decoded"
    turn = 0  # of `asked`
    with _open(path) as container:
        for item in _decode(container, scan, asked, threads):
            if isinstance(item, str):
                reason = item
                continue
            position, picture = item
            while turn < len(asked) and asked[turn] < position:
                yield DecodedFrame(asked[turn], None, reason)
                turn += 1
            if turn == len(asked):
                return
            if asked[turn] != position:
                continue
            if picture.is_corrupt:
                yield DecodedFrame(position, None, "damaged data")
            else:
                rgb = reformatter.reformat(picture, format="rgb24").to_ndarray()
                yield DecodedFrame(position, rgb)
            turn += 1
    for frame in asked[turn:]:
        yield DecodedFrame(frame, None, reason if frame < len(scan.pts) else end)


def _decode(
    container: Any, scan: VideoScan, asked: list[int], threads: int
) -> Iterator[tuple[int, Any] | str]:
    """Decode from the first wanted frame on: ``(position, picture)``, or an error's text."""
    import av

    stream = container.streams.video[0]
    stream.codec_context.thread_count = threads
    if threads > 1:
        stream.thread_type = "AUTO"
    alone = len(scan.keyframes) == len(scan.pts)
    needed = set(scan.pts[[frame for frame in asked if frame < len(scan.pts)]].tolist())
    if not needed:
        return
    first, last = min(needed), max(needed)
    before = scan.keyframes[scan.keyframes <= first]
    if len(before) and before[-1] > scan.pts[0]:
        container.seek(int(before[-1]), stream=stream, backward=True)
    previous = -1
    for packet in _packets(container, stream):
        time = packet.dts if packet.pts is None else packet.pts
        if packet.size and (packet.is_corrupt or (alone and time not in needed)):
            if not alone or time is None or time <= last:
                continue
            packet = None  # enough: let the decoder hand out what its threads still hold
        # A decoder would paint damaged slices from another frame and say nothing.
        elif scan.checksums and packet.size and not slices_intact(bytes(packet)):
            yield "damaged data: checksum mismatch"
            continue
        try:
            pictures = stream.codec_context.decode(packet)
        except av.error.FFmpegError as error:
            yield _reason(error)
            continue
        for picture in pictures:
            time = picture.dts if picture.pts is None else picture.pts
            position = int(np.searchsorted(scan.pts, time)) if time is not None else previous + 1
            previous = max(position, previous + 1)  # frames that share a time stamp
            yield previous, picture
        if packet is None:
            return


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """Packets up to the end or to where the file can be read no further."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            return
        if packet is None:
            return
        yield packet


# Files that hold a video themselves. Playlists and scripts (HLS, DASH, concat) would make the
# reader follow addresses that somebody else wrote.
_FORMATS = "matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,avi,mpegts,mpeg,flv,ogg,gif,h264,hevc,ivf,nut,asf"


def _open(path: Path) -> Any:
    import av

    return av.open(
        str(path),
        options={"fflags": "+genpts", "protocol_whitelist": "file", "format_whitelist": _FORMATS},
        metadata_errors="replace",
    )


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split())

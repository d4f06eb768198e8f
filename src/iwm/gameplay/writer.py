"""Writing a recording: frames to a video, steps to a table, readable at any moment.

Frames go to FFV1 (lossless) or H.264 in Matroska. Bit-exact flags and one encoder
thread make the file a function of the frames alone: no time, no random identifier,
no dependence on the machine's cores.

While recording, each step is also a line of ``steps.jsonl``, flushed with its frame,
and ``recording.json`` says ``complete: false``. Closing writes ``steps.parquet``,
removes the log and says ``complete: true``. What a killed recorder leaves is read
by :func:`iwm.gameplay.reader.read_steps` up to the cut.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from iwm.errors import ConfigError, DataError
from iwm.files import atomic_path
from iwm.gameplay.schema import STEPS_FILE, STEPS_SCHEMA, Recording, write_recording

STEPS_LOG = "steps.jsonl"

Codec = Literal["ffv1", "h264"]

# A cluster is what Matroska writes at once: small ones bound what a kill can lose.
_CONTAINER_OPTIONS = {
    "fflags": "+bitexact",
    "flush_packets": "1",
    "cluster_size_limit": "131072",
    "cluster_time_limit": "2000",
}
# FFV1 version 3 of single frames (g=1): any frame decodes alone; slice CRCs tell damage.
# H.264 without B-frames and look-ahead: a frame is in the file as soon as it was given.
_CODECS: dict[str, tuple[str, str, dict[str, str]]] = {
    "ffv1": ("ffv1", "bgr0", {"level": "3", "g": "1", "slices": "4", "slicecrc": "1"}),
    "h264": (
        "libx264",
        "yuv420p",
        {"crf": "18", "preset": "veryfast", "tune": "zerolatency", "threads": "1"},
    ),
}
_MAX_FPS = 500  # Matroska counts milliseconds; faster frames would share a time stamp


class RecordingWriter:
    """Writes one recording; a context manager.

    Leaving the block normally completes the recording. Leaving it by an exception
    closes the video and keeps everything written so far as an incomplete recording.

    Args:
        folder: made if need be; must hold no recording yet.
        recording: what ``recording.json`` will say; its ``frames_path`` is the video written,
            its ``complete`` and ``software["av"]`` are set by the writer. With
            ``variable_frame_rate`` the video's time stamps are the steps' times,
            otherwise frame number / ``fps``.
        codec: ``ffv1`` (lossless, about 8 kB for a 160x120 frame) or ``h264`` (crf 18).

    Raises:
        DataError: the folder holds a recording already.
        ConfigError: H.264 with an odd width or height, or more than 500 frames a second.
    """

    def __init__(self, folder: Path, recording: Recording, codec: Codec = "ffv1") -> None:
        if recording.fps > _MAX_FPS:
            raise ConfigError(f"{recording.name}: {recording.fps:g} fps, at most {_MAX_FPS}")
        if codec == "h264" and (recording.width % 2 or recording.height % 2):
            raise ConfigError(
                f"{recording.name}: h264 needs even sizes, not {recording.width}x{recording.height}"
            )
        self.folder = folder
        self.recording = dataclasses.replace(
            recording, complete=False, software={**recording.software, "av": version("av")}
        )
        self.codec = codec
        self.frames = 0
        self._rows: dict[str, list[Any]] = {name: [] for name in STEPS_SCHEMA.names}
        self._last_pts = -1

    def __enter__(self) -> Self:
        import av

        self.folder.mkdir(parents=True, exist_ok=True)
        if any(self.folder.iterdir()):
            raise DataError(f"{self.folder}: not empty; a recording needs a folder of its own")
        write_recording(self.folder, self.recording)
        self._log: IO[str] = (self.folder / STEPS_LOG).open("w", encoding="utf-8")
        encoder, pixels, options = _CODECS[self.codec]
        rate = Fraction(self.recording.fps).limit_denominator(100_000)
        self._container = av.open(
            str(self.folder / self.recording.frames_path),
            "w",
            format="matroska",
            options=_CONTAINER_OPTIONS,
        )
        stream: Any = self._container.add_stream(
            encoder, rate=rate, options={"flags": "+bitexact", **options}
        )
        stream.width, stream.height = self.recording.width, self.recording.height
        stream.pix_fmt = pixels
        self._stream = stream
        self._stream.codec_context.thread_count = 1
        self._time_base = Fraction(1, 1000) if self.recording.variable_frame_rate else 1 / rate
        self._stream.codec_context.time_base = self._time_base
        self._reformatter = av.video.reformatter.VideoReformatter()
        return self

    def append(
        self,
        frame: npt.NDArray[np.uint8],
        episode: int,
        step: int,
        time_s: float,
        action: int,
        reward: float,
        done: bool,
        action_vector: Sequence[float] | None = None,
    ) -> None:
        """Add one frame and the step that follows it.

        Args:
            frame: uint8 RGB ``[height, width, 3]``.
            episode: number of the episode, from 0.
            step: number of the step in its episode, from 0.
            time_s: seconds since the recording began; increasing.
            action: id in the vocabulary, or ``NO_ACTION``.
            reward: outcome of the action.
            done: whether the action ended the episode.
            action_vector: the continuous action, ``[action_dim]``.

        Raises:
            DataError: the frame's shape or type is not the recording's, or an action id is
                outside the vocabulary.
        """
        import av

        shape = (self.recording.height, self.recording.width, 3)
        if frame.shape != shape or frame.dtype != np.uint8:
            raise DataError(
                f"{self.folder}: frame {self.frames} is {frame.dtype} {frame.shape}, "
                f"not uint8 {shape}"
            )
        if not -1 <= action < len(self.recording.actions):
            raise DataError(
                f"{self.folder}: frame {self.frames} has action {action}, outside the vocabulary "
                f"of {len(self.recording.actions)}"
            )
        picture = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"),
            format=self._stream.pix_fmt,
        )
        picture.pts, picture.time_base = self._pts(time_s), self._time_base
        for packet in self._stream.encode(picture):
            self._container.mux(packet)
        vector = None if action_vector is None else [float(value) for value in action_vector]
        row = {
            "episode": episode,
            "step": step,
            "time_s": float(time_s),
            "frame": self.frames,
            "action": int(action),
            "action_vector": vector,
            "reward": float(np.float32(reward)),
            "done": bool(done),
        }
        for name, value in row.items():
            self._rows[name].append(value)
        self._log.write(json.dumps(list(row.values()), separators=(",", ":")) + "\n")
        self._log.flush()
        self.frames += 1

    def _pts(self, time_s: float) -> int:
        """The frame's time stamp in units of the stream's time base; strictly increasing."""
        if self.recording.variable_frame_rate:
            self._last_pts = max(self._last_pts + 1, round(time_s * 1000))
        else:
            self._last_pts += 1
        return self._last_pts

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self.frames:
                for packet in self._stream.encode(None):
                    self._container.mux(packet)
        finally:
            self._container.close()
            self._log.close()
        if kind is None:
            self._complete()

    def _complete(self) -> None:
        import pyarrow.parquet as pq

        if not self.frames:
            raise DataError(f"{self.folder}: no frames were recorded")
        with atomic_path(self.folder / STEPS_FILE) as temporary:
            pq.write_table(pa.table(self._rows, schema=STEPS_SCHEMA), temporary, compression="zstd")
        self.recording = dataclasses.replace(self.recording, complete=True)
        write_recording(self.folder, self.recording)
        (self.folder / STEPS_LOG).unlink()

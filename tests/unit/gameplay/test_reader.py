"""Reading: recovery after a kill at any byte, damage, positions in foreign videos."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from iwm.errors import DataError
from iwm.gameplay.reader import image_files, iter_frames, read_steps, scan_video
from iwm.gameplay.schema import NO_ACTION, Recording, read_recording, write_recording
from iwm.gameplay.writer import STEPS_LOG, RecordingWriter

WIDTH, HEIGHT = 48, 32


def meta(**changes: object) -> Recording:
    values: dict[str, object] = {
        "name": "r",
        "source": "procedural",
        "game": "counter",
        "fps": 10,
        "width": WIDTH,
        "height": HEIGHT,
        "actions": ("noop", "left"),
        "licence": "none",
    }
    return Recording(**(values | changes))  # type: ignore[arg-type]


def picture(number: int) -> np.ndarray:
    """Noise, so that frames are of some size, with the frame's number in flat blocks on top."""
    frame = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for bit in range(10):
        frame[:8, 4 * bit : 4 * bit + 4] = 255 * (number >> bit & 1)
    return frame


def number_of(image: np.ndarray) -> int:
    return sum(int(image[:8, 4 * bit : 4 * bit + 4].mean() > 127) << bit for bit in range(10))


def write(folder: Path, frames: int, codec: str = "ffv1") -> Recording:
    with RecordingWriter(folder, meta(), codec) as writer:  # type: ignore[arg-type]
        for step in range(frames):
            writer.append(picture(step), 0, step, step / 10, 1, 1.0, False)
    return read_recording(folder)


@pytest.mark.parametrize("codec", ["ffv1", "h264"])
@pytest.mark.parametrize("threads", [1, 3])
def test_wanted_positions_only(tmp_path: Path, codec: str, threads: int) -> None:
    recording = write(tmp_path / "r", 90, codec)
    for wanted in ([0], [3, 4, 50, 89], list(range(60, 80)), [89], []):
        found = list(iter_frames(tmp_path / "r", recording, wanted, threads=threads))
        assert [item.frame for item in found] == wanted
        assert [number_of(item.image) for item in found] == wanted  # type: ignore[arg-type]
        assert all(item.error is None for item in found)


def test_positions_behind_the_end_are_errors(tmp_path: Path) -> None:
    recording = write(tmp_path / "r", 5)
    found = list(iter_frames(tmp_path / "r", recording, [3, 4, 5, 9]))
    assert [item.error for item in found[:2]] == [None, None]
    assert all("ends after 5 frames" in str(item.error) for item in found[2:])


def test_one_damaged_frame_does_not_cost_the_others(tmp_path: Path) -> None:
    recording = write(tmp_path / "r", 20)
    path = tmp_path / "r" / "frames.mkv"
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(255 - value for value in data[middle : middle + 40])
    path.write_bytes(data)
    found = list(iter_frames(tmp_path / "r", recording, range(20)))
    assert [item.frame for item in found] == list(range(20))
    bad = [item for item in found if item.image is None]
    assert 1 <= len(bad) <= 2
    assert all(item.error for item in bad)
    for item in found:
        if item.image is not None:
            assert np.array_equal(item.image, picture(item.frame))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.77, 0.99])
def test_a_cut_anywhere_is_readable_up_to_it(tmp_path: Path, share: float) -> None:
    recording = write(tmp_path / "r", 60)
    path = tmp_path / "r" / "frames.mkv"
    os.truncate(path, int(path.stat().st_size * share))
    found = list(iter_frames(tmp_path / "r", recording, range(60)))
    assert [item.frame for item in found] == list(range(60))
    good = [item for item in found if item.image is not None]
    assert abs(len(good) - 60 * share) <= 3
    assert [item.frame for item in good] == list(range(len(good)))
    assert all(np.array_equal(item.image, picture(item.frame)) for item in good)


RECORDER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_reader import meta, picture
from iwm.gameplay.writer import RecordingWriter
with RecordingWriter(Path({folder!r}), meta()) as writer:
    step = 0
    while True:
        writer.append(picture(step % 1000), step // 50, step % 50, step / 10, 1, 1.0, False)
        step += 1
"""


def test_kill_9_leaves_a_recording_up_to_the_cut(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    script = RECORDER.format(tests=str(Path(__file__).parent), folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 60
    log = folder / STEPS_LOG
    while time.monotonic() < deadline and not (log.exists() and log.stat().st_size > 8_000):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()

    logged = len(log.read_text().splitlines())
    recording = read_recording(folder)
    assert not recording.complete
    steps = read_steps(folder)
    assert logged - 60 <= steps.num_rows <= logged
    assert steps["frame"].to_pylist() == list(range(steps.num_rows))
    assert steps["action"].to_pylist() == [1] * (steps.num_rows - 1) + [NO_ACTION]
    found = list(iter_frames(folder, recording, range(steps.num_rows)))
    assert [item.error for item in found] == [None] * steps.num_rows
    assert [number_of(item.image) for item in found] == [  # type: ignore[arg-type]
        number % 1000 for number in range(steps.num_rows)
    ]


def test_a_half_written_line_of_the_log_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "whole", 4)
    (tmp_path / "r").mkdir()
    (tmp_path / "whole" / "frames.mkv").rename(tmp_path / "r" / "frames.mkv")
    write_recording(tmp_path / "r", meta(complete=False))
    lines = [f"[0,{n},{n / 10},{n},1,null,1.0,false]" for n in range(4)]
    (tmp_path / "r" / STEPS_LOG).write_text("\n".join(lines[:2]) + "\n" + lines[2][:9])
    assert read_steps(tmp_path / "r")["action"].to_pylist() == [1, NO_ACTION]


def test_cut_before_the_first_frame(tmp_path: Path) -> None:
    write_recording(tmp_path, meta(complete=False))
    (tmp_path / STEPS_LOG).write_text("[0,0,0.0,0,1,null,1.0,false]\n")
    (tmp_path / "frames.mkv").write_bytes(b"")
    assert read_steps(tmp_path).num_rows == 0


@pytest.mark.parametrize("content", [b"", b"#EXTM3U\nhttp://127.0.0.1:1/x.ts\n", b"junk" * 100])
def test_what_is_no_video_says_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "frames.mkv").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as a video"):
        list(iter_frames(tmp_path, meta()))


def test_frames_of_too_many_pixels_are_refused_before_decoding(tmp_path: Path) -> None:
    write(tmp_path / "r", 2)
    with pytest.raises(DataError, match="over the bound"):
        scan_video(tmp_path / "r" / "frames.mkv", max_pixels=100)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"steps\.parquet: not found"):
        read_steps(tmp_path)
    with pytest.raises(DataError, match=r"frames\.mkv: not found"):
        list(iter_frames(tmp_path, meta()))
    (tmp_path / "steps.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match="not a step table"):
        read_steps(tmp_path)


def test_foreign_video_with_b_frames_keeps_its_order(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "frames.mkv"), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30, options={"bf": "3", "g": "25"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"  # type: ignore
        for number in range(100):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            container.mux(stream.encode(frame))  # type: ignore
        container.mux(stream.encode(None))  # type: ignore
    scan = scan_video(tmp_path / "frames.mkv")
    assert len(scan.pts) == 100
    assert len(scan.keyframes) < 100
    for wanted in (range(100), [30, 31, 77, 99]):
        found = list(iter_frames(tmp_path, meta(), list(wanted)))
        assert [number_of(item.image) for item in found] == list(wanted)  # type: ignore[arg-type]


def test_image_folder(tmp_path: Path) -> None:
    from PIL import Image

    names = [b"a/1.png", b"a/2.png", b"caf\xe9.png", b"z.png"]
    for number, name in enumerate(names):
        path = Path(os.fsdecode(os.fsencode(tmp_path / "frames") + b"/" + name))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number)).save(path, format="png")
    (tmp_path / "frames" / ".hidden").write_bytes(b"")
    (tmp_path / "frames" / "a" / "2.png").write_bytes(b"")
    recording = meta(frames_path="frames")
    assert [os.fsencode(file.name) for file in image_files(tmp_path / "frames")] == [
        b"1.png",
        b"2.png",
        b"caf\xe9.png",
        b"z.png",
    ]
    found = list(iter_frames(tmp_path, recording))
    assert [item.image is None for item in found] == [False, True, False, False]
    assert np.array_equal(found[2].image, picture(2))  # type: ignore[arg-type]
    assert "4 images" in str(next(iter_frames(tmp_path, recording, [4])).error)

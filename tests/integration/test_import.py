"""Import your own: ffmpeg's mp4 and a CSV, through to shards, frame by frame exact."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from clips import burned, make_clip
from PIL import Image

from iwm.data.config import ShardConfig
from iwm.data.reader import ShardStore
from iwm.data.shards import write_shards
from iwm.errors import DataError
from iwm.gameplay.config import IngestConfig
from iwm.gameplay.ingest import ingest
from iwm.gameplay.reader import iter_frames, read_steps
from iwm.gameplay.schema import NO_ACTION, read_recording
from iwm.gameplay.sources import _importing
from iwm.gameplay.sources.images import import_images
from iwm.gameplay.sources.video import import_video

DROPS = "select='not(eq(mod(n,7),3))*not(eq(mod(n,11),4))'"
REPOSITORY = Path(__file__).parents[2]


def write_log(path: Path, frames: int = 90, shift: float = 0.0) -> Path:
    rows = "".join(f"{n / 30 + shift:.6f},a{n % 7}\n" for n in range(frames))
    path.write_text(f"time,action\n{rows}")
    return path


@pytest.mark.parametrize("filters", ["null", DROPS], ids=["constant", "variable"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm"])
def test_from_ffmpeg_to_shards_frame_exact(tmp_path: Path, suffix: str, filters: str) -> None:
    video = make_clip(tmp_path / f"clip.{suffix}", filters=filters)
    log = write_log(tmp_path / "clip.csv", shift=-2.5)  # another clock
    done = import_video(video, log, tmp_path / "data", offset_s=2.5, episode_s=1.0)
    assert done.recording.variable_frame_rate == (filters != "null")
    assert (done.folder / done.recording.frames_path).read_bytes() == video.read_bytes()

    ingest(tmp_path / "data", tmp_path / "index", IngestConfig(executor="serial"))
    shape = ShardConfig(width=192, height=64, fit="resize", format="png", workers=1)
    write_shards(tmp_path / "data", tmp_path / "index", tmp_path / "shards", shape)
    store = ShardStore(tmp_path / "shards")
    rows = np.arange(store.table.num_rows)
    images = store.decode(rows)
    assert len(images) == done.frames
    names = store.vocabulary("clip")
    actions = store.table["action"].to_pylist()
    times = store.table["time_s"].to_pylist()
    numbers = [burned(image) for image in images]
    assert sorted(numbers)[-1] == 89
    last = {}
    for row, number in enumerate(numbers):
        last[store.table["episode"][row].as_py()] = row
        assert times[row] == pytest.approx(number / 30, abs=0.0011)
    for row, number in enumerate(numbers):
        if row in last.values():
            assert actions[row] == NO_ACTION
        else:
            assert names[actions[row]] == f"a{number % 7}"
    assert len(last) == 3


def test_the_examples_of_the_documentation_run(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs/importing.md").read_text()
    commands = [
        line
        for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("iwm import")
    ]
    assert len(commands) >= 3
    for name in ("play.mp4", "skyrim.mkv"):
        make_clip(tmp_path / name)
    write_log(tmp_path / "play.csv")
    (tmp_path / "keys.csv").write_text("time,key,event\n0.5,w,down\n1.0,space,down\n1.5,w,up\n")
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        Image.new("RGB", (32, 32), "red").save(tmp_path / "photos" / label / "1.jpg")
    for number, line in enumerate(commands):
        words = [*shlex.split(line)[1:], "--name", f"run{number}"]
        done = run_iwm(words, tmp_path)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "data" / f"run{number}" / "recording.json").exists()


def run_iwm(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    code = "from iwm.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mkv", frames=300)


def test_errors_are_one_line_with_file_and_reason(tmp_path: Path, clip: Path) -> None:
    empty = tmp_path / "empty.mp4"
    empty.touch()
    log = write_log(tmp_path / "log.csv")
    long = write_log(tmp_path / "long.csv", frames=600)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(clip.read_bytes()[: clip.stat().st_size * 6 // 10])
    headless = make_clip(tmp_path / "headless.mp4")
    headless.write_bytes(headless.read_bytes()[:-3000])  # the index stands at the end
    bad = [
        ([empty, log], r"empty.mp4: the file is empty"),
        ([tmp_path / "none.mp4", log], r"none.mp4: No such file"),
        ([clip, tmp_path / "none.csv"], r"none.csv: action log: No such file"),
        ([clip, long], r"long.csv: log ends at 19.967 s, but .*clip.mkv is only 10.0\d+ s long"),
        ([cut, log], r"cut.mkv: cut off or damaged: .*--allow-truncated imports its \d+"),
        ([headless, log], r"headless.mp4: .*"),
        ([log, log], r"log.csv: cannot be read as a video"),
        ([clip, log, "--actions", "a0,a1"], r"log.csv: unknown action 'a2' at 0.066667 s"),
        ([clip, log, "--offset", "99"], r"log.csv: begins at 99.000 s"),
        ([clip, log, "--offset", "nan"], r"--offset nan"),
    ]
    for (video, rows, *more), message in bad:
        done = run_iwm(
            ["import", "video", str(video), "--log", str(rows), *map(str, more)], tmp_path
        )
        assert done.returncode == 1, message
        lines = [line for line in done.stderr.splitlines() if not line.startswith("copy")]
        assert len(lines) == 1, done.stderr
        assert re.match(f"error: .*{message}", lines[0]), lines[0]
    assert not list((tmp_path / "data").glob("*"))


def test_a_cut_off_video_can_be_imported_up_to_the_cut(tmp_path: Path, clip: Path) -> None:
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(clip.read_bytes()[: clip.stat().st_size * 6 // 10])
    log = write_log(tmp_path / "log.csv", frames=300)
    done = import_video(cut, log, tmp_path / "data", allow_truncated=True, episode_s=0)
    assert 90 < done.frames < 300
    assert any("cut off" in warning for warning in done.warnings)
    assert any("left out" in warning for warning in done.warnings)
    actions = read_steps(done.folder)["action"].to_pylist()
    for frame in iter_frames(done.folder, done.recording):
        if frame.image is not None and frame.frame < done.frames - 1:
            assert done.recording.actions[actions[frame.frame]] == f"a{burned(frame.image) % 7}"


def test_a_longer_log_is_accepted_when_asked(tmp_path: Path, clip: Path) -> None:
    log = write_log(tmp_path / "log.csv", frames=400)
    done = import_video(clip, log, tmp_path / "data", accept_longer_log=True)
    assert done.frames == 300
    assert done.warnings == ("100 log rows after the end of the video at 10.000 s left out",) or (
        "left out" in done.warnings[0]
    )
    with pytest.raises(DataError, match="exists already"):
        import_video(clip, log, tmp_path / "data", accept_longer_log=True)


def test_names_that_are_not_utf8(tmp_path: Path, clip: Path) -> None:
    name = os.fsencode(tmp_path) + b"/jeu \xe9t\xe9.mkv"
    try:
        Path(os.fsdecode(name)).write_bytes(clip.read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    log = write_log(tmp_path / "log.csv")
    done = import_video(Path(os.fsdecode(name)), log, tmp_path / "data")
    assert re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", done.recording.name)
    assert read_recording(done.folder) == done.recording


def test_no_space_left_leaves_nothing_behind(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(_importing.shutil, "copystat", full)
    with pytest.raises(DataError, match=r"data/clip: not written: No space left on device"):
        import_video(clip, write_log(tmp_path / "log.csv"), tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_folder_of_images_with_bad_ones_among_them(tmp_path: Path) -> None:
    source = tmp_path / "Photos"
    for label in ("cat", "dog"):
        (source / label).mkdir(parents=True)
        for number in range(4):
            shade = (60 * number, 10, 90)
            Image.new("RGB", (40, 32), shade).save(source / label / f"{number}.png")
    (source / "cat" / "zero.jpg").touch()
    Image.new("RGB", (1, 1)).save(source / "cat" / "one.png")
    Image.new("1", (8000, 5000)).save(source / "dog" / "big.png")
    Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(source / "dog" / "ink.jpg")
    frames = [Image.new("RGB", (16, 16), (shade, 0, 0)) for shade in (0, 200)]
    frames[0].save(source / "dog" / "dance.gif", save_all=True, append_images=frames[1:])
    (source / "dog" / "notes.txt").write_text("not an image")
    odd = Path(os.fsdecode(os.fsencode(source) + b"/\xff\xfe.png"))
    Image.new("RGB", (32, 32)).save(odd)

    done = import_images(source, tmp_path / "data")
    assert done.images == 10
    reasons = {Path(file).name: reason for file, reason in done.set_aside}
    assert reasons == {
        "zero.jpg": "the file is empty (zero bytes)",
        "one.png": "1x1 is smaller than 8x8",
        "big.png": "8000x5000 is 40,000,000 pixels, more than 16,777,216",
        "dance.gif": "animated GIF; import it as a video instead",
    }
    recording = read_recording(done.folder)
    assert (
        len(recording.extra["set_aside"]) == len(list((done.folder / "set-aside").iterdir())) == 4
    )
    assert recording.extra["classes"] == [".", "cat", "dog"]
    assert json.dumps(recording.extra["files"], ensure_ascii=False).encode()
    images = {frame.frame: frame.image for frame in iter_frames(done.folder, recording)}
    red = recording.extra["files"].index("dog/ink.jpg")
    assert images[red] is not None
    assert images[red][0, 0, 0] > 240
    assert len(set(read_steps(done.folder)["episode"].to_pylist())) == 10
    summary = ingest(tmp_path / "data", tmp_path / "index", IngestConfig(executor="serial"))
    assert summary.share == 0


def test_a_folder_without_a_usable_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        import_images(tmp_path / "none", tmp_path / "data")
    (tmp_path / "x").mkdir()
    with pytest.raises(DataError, match="no images"):
        import_images(tmp_path / "x", tmp_path / "data")
    (tmp_path / "x" / "a.png").touch()
    with pytest.raises(DataError, match="none of 1 images can be used"):
        import_images(tmp_path / "x", tmp_path / "data")

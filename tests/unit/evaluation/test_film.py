"""Films of dreams: they can be opened again, and hold what was put in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import toydreams

from iwm.errors import ConfigError
from iwm.evaluation.film import side_by_side, write_film

FRAMES = toydreams.windows(count=1, frames=8).frames[0].numpy()


@pytest.fixture(scope="module")
def film() -> np.ndarray:  # type: ignore[type-arg]
    return side_by_side({"true": FRAMES, "imagined": 255 - FRAMES}, [f"{i}" for i in range(8)], 3)


def test_films_lie_side_by_side_at_even_sizes(film: np.ndarray) -> None:  # type: ignore[type-arg]
    assert film.shape == (8, 3 * 64 + 32, 2 * 3 * 64 + 4, 3)
    assert (film[:, 16 : 16 + 192, :192] == FRAMES.repeat(3, 1).repeat(3, 2)).all()


def test_a_gif_holds_its_frames(tmp_path: Path, film: np.ndarray) -> None:  # type: ignore[type-arg]
    from PIL import Image

    write_film(film, tmp_path / "dream.gif", 8)
    with Image.open(tmp_path / "dream.gif") as image:
        assert (image.n_frames, image.size) == (8, film.shape[2:0:-1])  # type: ignore[attr-defined]
        assert image.info["duration"] == 120


def test_a_video_holds_its_frames(tmp_path: Path, film: np.ndarray) -> None:  # type: ignore[type-arg]
    import av

    write_film(film, tmp_path / "dream.mp4", 8)
    with av.open(str(tmp_path / "dream.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 8
    assert np.abs(frames[3].astype(int) - film[3]).mean() < 12


def test_another_format_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.gif or \.mp4"):
        write_film(FRAMES, tmp_path / "dream.avi", 8)
    assert not list(tmp_path.iterdir())

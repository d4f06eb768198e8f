"""The gallery: what evaluation drew, in order, and nothing else."""

from __future__ import annotations

from pathlib import Path

from iwm.app import gallery


def test_it_shows_pictures_and_films_of_the_generative_models(tmp_path: Path) -> None:
    for name in (
        *("vqvae/reconstructions.png", "vqvae/curve.json", "vqvae-dynamics/dream.gif"),
        *("vqvae-dynamics/film.mp4", "core/loss.png", 'vqvae/<b>"&.png'),
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    found = gallery.find(tmp_path)
    assert [path.name for path in found] == [
        "dream.gif",
        "film.mp4",
        '<b>"&.png',
        "reconstructions.png",
    ]
    page = gallery.page(found)
    assert page.count("<figure>") == 4
    assert "<b>" not in page
    assert 'src="pictures/vqvae-dynamics/dream.gif?' in page
    assert "<video" in page


def test_it_says_what_draws_them_where_there_are_none(tmp_path: Path) -> None:
    assert "dvc repro evaluate@vqvae" in gallery.page(gallery.find(tmp_path / "nothing"))

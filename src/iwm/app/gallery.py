"""The pictures that the evaluation of the generative models left behind."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

SUFFIXES = (".gif", ".png", ".mp4")
EMPTY = (
    "<p>No pictures yet: <code>dvc repro evaluate@vqvae evaluate@vqvae-dynamics</code> "
    "draws them.</p>"
)


def find(folder: Path) -> list[Path]:
    """Pictures and films of every phase ``vqvae*`` in ``folder``; what moves comes first."""
    found = [
        path
        for path in folder.glob("vqvae*/*")
        if path.suffix.lower() in SUFFIXES and path.is_file()
    ]
    order = {suffix: place for place, suffix in enumerate((".gif", ".mp4", ".png"))}
    return sorted(found, key=lambda path: (order[path.suffix.lower()], path.parent.name, path.name))


def page(pictures: Sequence[Path]) -> str:
    """HTML of all of them, each a link to itself."""
    return (
        f'<div class="iwm-gallery">{"".join(map(_figure, pictures))}</div>' if pictures else EMPTY
    )


def _figure(path: Path) -> str:
    address = f"pictures/{quote(path.parent.name)}/{quote(path.name)}"
    # A picture drawn anew has the same name: its time keeps a browser from showing the old one.
    address += f"?{path.stat().st_mtime_ns}"
    title = escape(path.stem.replace("_", " ").replace("-", " "))
    shown = (
        f'<video src="{address}" controls loop muted></video>'
        if path.suffix.lower() == ".mp4"
        else f'<a href="{address}" target="_blank"><img src="{address}" alt="{title}"></a>'
    )
    phase = escape(path.parent.name)
    return f"<figure>{shown}<figcaption>{title} <small>{phase}</small></figcaption></figure>"

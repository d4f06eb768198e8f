"""The page: play, reconstruct, gallery."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from iwm.errors import IwmError
from iwm.gameplay.images import decode_image

if TYPE_CHECKING:
    import gradio

    from iwm.app.server import Shown
    from iwm.serving.dreaming import Codec, Reconstruction

Image = npt.NDArray[np.uint8]

BROUGHT = "your picture"
MAX_PIXELS = 16_777_216
CACHE_S = 3600
"""Pictures that were brought or drawn are deleted after so many seconds."""
SIDE = 240
"""Pixels that a picture is shown high."""
ERROR_LEVELS = 64
"""Grey levels of error that the map shows at full strength."""
NO_DREAMS = (
    "There are no token dynamics yet, so there is nothing to play in: "
    "<code>dvc repro train@vqvae-dynamics</code> trains them."
)
NO_FRAMES = (
    "There are no held-out frames to begin from: <code>dvc repro shard</code> makes them, or "
    "<code>--shards</code> names a folder that holds some."
)
NOTHING = (None, None, None, None, "")
_PAGE = Path(__file__).parent / "page"


def theme() -> gradio.themes.Base:
    """Gradio's own, with the fonts that every machine has."""
    import gradio

    plain: gradio.themes.Base = gradio.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    return plain


def style() -> str:
    """Of the whole page."""
    return _text("app.css") + _text("play.css")


def build(shown: Shown) -> gradio.Blocks:
    """Everything that is to be seen."""
    import gradio

    page: gradio.Blocks = gradio.Blocks(
        title="iwm play", analytics_enabled=False, delete_cache=(CACHE_S, CACHE_S)
    )
    with page:
        gradio.HTML(_heading(shown))
        with gradio.Tab("Play"):
            _play(shown)
        with gradio.Tab("Reconstruct"):
            _reconstruct(shown)
        with gradio.Tab("Gallery"):
            _gallery(page, shown.pictures)
    page.queue(max_size=32)
    return page


def _play(shown: Shown) -> None:
    import gradio

    from iwm.app.server import facts

    if shown.dreamer is None or shown.held_out is None:
        gradio.HTML(f"<p>{NO_DREAMS if shown.dreamer is None else NO_FRAMES}</p>")
        return
    gradio.HTML(
        value="",
        html_template=_text("play.html"),
        js_on_load=f"const GAME = {json.dumps(facts(shown))};\n{_text('play.js')}",
        elem_id="play",
        apply_default_css=False,
    )


def _reconstruct(shown: Shown) -> None:
    import gradio

    with gradio.Row():
        with gradio.Column(scale=1, min_width=200):
            brought = gradio.Image(
                label="Your picture",
                type="filepath",
                image_mode=None,
                sources=["upload", "clipboard"],
                height=SIDE,
                elem_id="brought",
            )
            another = gradio.Button(
                "A held-out frame", size="sm", visible=shown.held_out is not None
            )
        outputs: list[Any] = [
            gradio.Image(
                label=label,
                format="png",
                height=SIDE,
                min_width=150,
                interactive=False,
                elem_id=name,
                buttons=[],
            )
            for label, name in (
                ("At the model's size", "original"),
                ("Through the tokens", "reconstruction"),
                ("Error (dark: much)", "error"),
                ("JPEG, as many bits", "jpeg"),
            )
        ]
    said = gradio.HTML("<p>Bring a picture, or take a held-out frame.</p>", elem_id="figures")
    outputs.append(said)

    def of_file(file: dict[str, Any] | None) -> tuple[Any, ...]:
        if file is None:
            return NOTHING
        data = Path(file["path"]).read_bytes()
        return _told(lambda: _shown(shown.codec, decode_image(data, MAX_PIXELS, BROUGHT), BROUGHT))

    def of_held_out() -> tuple[Any, ...]:
        held_out = shown.held_out
        assert held_out is not None
        image, caption = held_out.image(random.randrange(len(held_out)))
        return _told(lambda: _shown(shown.codec, image, caption))

    quiet: dict[str, Any] = {"outputs": outputs, "api_visibility": "private"}
    # As it was brought: Gradio's own decoder raises whatever a broken file makes it raise. That the
    # path is one of an upload is checked all the same.
    brought.upload(of_file, brought, preprocess=False, **quiet)
    brought.clear(lambda: NOTHING, None, **quiet)
    another.click(of_held_out, None, **quiet)


def _gallery(page: gradio.Blocks, pictures: Path) -> None:
    import gradio

    from iwm.app import gallery

    def shown() -> str:
        return gallery.page(gallery.find(pictures))

    held = gradio.HTML(shown(), elem_id="gallery")
    page.load(shown, None, held, api_visibility="private")


def _told(work: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
    """What ``work`` returns; what is the visitor's to mend is said in its place."""
    try:
        return work()
    except IwmError as error:
        return (*NOTHING[:-1], f'<p role="alert">{escape(str(error))}</p>')


def _shown(codec: Codec, image: Image, caption: str) -> tuple[Any, ...]:
    from iwm.evaluation import jpeg

    fitted = np.ascontiguousarray(codec.preprocess(image))
    (found,) = codec.reconstruct(fitted[None])
    other, spent = jpeg.stream(found.original, found.bits)
    told = figures(found, other, spent, f"{caption}, {image.shape[1]} x {image.shape[0]}")
    return found.original, found.image, error_map(found), other, told


def error_map(found: Reconstruction) -> Image:
    """The error of each pixel, ``[H, W, 3]``: white is none, dark red :data:`ERROR_LEVELS`."""
    share = np.clip(found.error / ERROR_LEVELS, 0, 1)[..., None]
    colours: Image = (255 - share * (255 - np.array([90, 0, 20]))).round().astype(np.uint8)
    return colours


def figures(found: Reconstruction, jpeg: Image, spent: int, caption: str) -> str:
    """HTML of the figures of one reconstruction.

    Args:
        found: the reconstruction.
        jpeg: the same picture through JPEG, in no more bits.
        spent: bytes that this JPEG took, its header left out as the codebook is.
        caption: where the picture is from.
    """
    import torch

    from iwm.evaluation.pixels import psnr

    height, width = found.original.shape[:2]
    rows, columns = found.tokens
    made, true = (torch.from_numpy(np.array(one)) for one in (jpeg, found.original))
    other = float(psnr(made, true))
    told = {
        "PSNR": f"{found.psnr:.2f} dB",
        "JPEG": f"{other:.2f} dB in {spent} of {found.bits / 8:.0f} bytes, its header not counted",
        "SSIM": f"{found.ssim:.3f}",
        "tokens": f"{rows} x {columns}, each one of {found.codes:,}",
        "bits": f"{found.bits:,.0f} ({found.bits / (height * width):.2f} a pixel)",
        "compression": f"{found.compression:.1f} times smaller than {height * width * 24:,} bits",
        "picture": f"{escape(caption)}, seen at {width} x {height}",
    }
    cells = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in told.items())
    return f'<dl class="iwm-told">{cells}</dl>'


def _heading(shown: Shown) -> str:
    height, width = shown.codec.size
    card = (shown.dreamer or shown.codec).card
    name = " ".join(str(card[key]) for key in ("model", "version") if card.get(key) is not None)
    words = [f"{width} x {height} pixels", f"{shown.codec.model.codebook_size:,} codes"]
    if shown.dreamer is not None:
        words.append(f"{len(shown.dreamer.vocabulary)} actions")
    return f"<h1>{escape(name or 'World model')}</h1><p>{', '.join(words)}</p>"


def _text(name: str) -> str:
    return (_PAGE / name).read_text(encoding="utf-8")

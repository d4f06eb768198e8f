"""`iwm reconstruct`: pictures through the tokens and back, beside JPEG at the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines._stage import MODELS, run, share_processors

TOKENIZER = MODELS / "vqvae"
MAX_PIXELS = 64_000_000
"""Of a picture that is read; larger ones are refused undecoded."""


def command(
    images: Annotated[list[Path], typer.Argument(help="Pictures of any size: PNG, JPEG, ...")],
    model: Annotated[Path, typer.Option(help="Folder of a tokenizer.")] = TOKENIZER,
    out: Annotated[Path, typer.Option(help="Folder for what is written.")] = Path(
        "reconstructions"
    ),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
) -> None:
    """Bring pictures to the model's size, through its tokens and back.

    Writes NAME.tokens.png, what comes back, and NAME.error.png, where it is off, into OUT; prints
    PSNR, SSIM and compression, and what JPEG reaches in the same bits.
    """
    share_processors()
    import numpy as np
    import torch
    from PIL import Image

    from iwm.errors import ModelError
    from iwm.evaluation import jpeg
    from iwm.evaluation.frame_pictures import error_map
    from iwm.evaluation.pixels import psnr
    from iwm.files import atomic_path
    from iwm.gameplay.images import read_image
    from iwm.models.saving import CONFIG_FILE
    from iwm.serving.dreaming import load_codec

    if not (model / CONFIG_FILE).is_file():
        raise ModelError(f"{model}: no trained model; run `iwm train vqvae` first, or give --model")
    codec = load_codec(model, device)
    names: dict[str, int] = {}
    for path in images:
        true = np.ascontiguousarray(codec.preprocess(read_image(path, MAX_PIXELS)))
        (found,) = codec.reconstruct(true[None])
        other, spent = jpeg.at_budget(true, found.bits)
        baseline = float(psnr(torch.from_numpy(other), torch.from_numpy(true)))
        error = error_map(torch.from_numpy(found.image), torch.from_numpy(true))
        # Pictures of one name from two folders must not overwrite each other.
        names[path.stem] = names.get(path.stem, 0) + 1
        name = path.stem if names[path.stem] == 1 else f"{path.stem}-{names[path.stem]}"
        for kind, picture in (("tokens", found.image), ("error", error)):
            with atomic_path(out / f"{name}.{kind}.png") as temporary:
                Image.fromarray(picture).save(temporary, format="PNG")
        typer.echo(
            f"{path}: PSNR {found.psnr:.2f} dB, SSIM {found.ssim:.3f}, {found.compression:.1f} "
            f"times smaller than raw pixels; a JPEG of {spent} bytes, "
            f"beside {found.bits / 8:.0f}, {baseline:.2f} dB"
        )
    typer.echo(f"pictures in {out}")


if __name__ == "__main__":
    run(command)

"""What an image tokenizer keeps of held-out frames, beside JPEG at the same bits (milestone 1)."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from iwm.evaluation import jpeg, pixels
from iwm.evaluation.statistics import Figure, bootstrap_mean, constant

Array = np.ndarray[Any, Any]


class Tokenizer(Protocol):
    """What evaluation needs of an image tokenizer (see ``iwm.models.vqvae``)."""

    @property
    def codebook_size(self) -> int:
        """How many codes a token may be."""
        ...

    @property
    def bits_per_image(self) -> float:
        """What the tokens of one picture cost, without entropy coding."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Pictures uint8 [B, H, W, 3] -> tokens int64 [B, h, w]."""
        ...

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens int64 [B, h, w] -> pictures uint8 [B, H, W, 3]."""
        ...

    def parameters(self) -> Any:
        """Weights; the first one's device is the model's."""
        ...


@dataclass(frozen=True)
class Reconstructions:
    """``metrics`` for the report; pictures uint8 [N, H, W, 3] on the CPU: ``true``, ``made`` by
    the tokenizer, ``jpeg`` at the same bits; ``psnr`` and ``jpeg_psnr`` [N] in dB; ``use`` [K]:
    how often each code was used.
    """

    metrics: dict[str, Any]
    true: Tensor
    made: Tensor
    jpeg: Tensor
    psnr: Array
    jpeg_psnr: Array
    use: Array


@torch.no_grad()
def evaluate(
    model: Tokenizer,
    images: Tensor,
    episodes: Array,
    *,
    resamples: int = 1000,
    seed: int = 0,
    batch: int = 64,
    timed: int = 20,
) -> Reconstructions:
    """Measure a tokenizer.

    Args:
        model: in eval mode.
        images: held-out frames, uint8 [N, H, W, 3].
        episodes: [N] labels; intervals resample whole episodes.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        batch: pictures at once.
        timed: pictures reconstructed one at a time, for the time of one.

    Returns:
        Metrics ``reconstruction`` (PSNR in dB, SSIM, LPIPS where the weights are), ``jpeg`` and
        ``jpeg_stream`` (the same of JPEG at equal bits, counted in two ways, see
        :mod:`iwm.evaluation.jpeg`; and the paired ``gain_psnr`` and ``gain_ssim``),
        ``codebook`` (share of codes in use, perplexity), ``cost`` (parameters, ms and bits a
        picture, compression against raw pixels, memory in GB).
    """
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    made, tokens = [], []
    for some in torch.split(images, batch):
        found = model.encode(some.to(device))
        tokens.append(found.flatten(1).cpu())
        made.append(model.decode(found).cpu())
    ours, codes = torch.cat(made), torch.cat(tokens).numpy()
    boot = {"resamples": resamples, "seed": seed}

    def mean(values: Array) -> Figure:
        return bootstrap_mean(values, episodes, **boot)

    psnr, ssim = pixels.psnr(ours, images), pixels.ssim(ours, images)
    metrics: dict[str, Any] = {
        "reconstruction": {"psnr": mean(psnr), "ssim": mean(ssim)},
        "codebook": codebook(codes, episodes, model.codebook_size),
        "cost": cost(model, images[:timed]),
        "notes": {},
    }
    baselines: dict[str, Tensor] = {}
    for name, through in (("jpeg", jpeg.at_budget), ("jpeg_stream", jpeg.stream)):
        decoded, spent = jpeg.baseline(images.numpy(), model.bits_per_image, through)
        baselines[name] = theirs = torch.from_numpy(decoded)
        found_psnr, found_ssim = pixels.psnr(theirs, images), pixels.ssim(theirs, images)
        metrics[name] = {
            "psnr": mean(found_psnr),
            "ssim": mean(found_ssim),
            "gain_psnr": mean(psnr - found_psnr),
            "gain_ssim": mean(ssim - found_ssim),
            "bytes": mean(spent),
        }
    theirs = baselines["jpeg"]
    network = pixels.lpips_network()
    if network is None:
        metrics["notes"]["lpips"] = (
            "left out: no weights of AlexNet, VGG or SqueezeNet in torch's folder of checkpoints"
        )
    else:
        metrics["reconstruction"]["lpips"] = mean(pixels.lpips(ours, images, network[0]))
        metrics["jpeg"]["lpips"] = mean(pixels.lpips(theirs, images, network[0]))
        metrics["notes"]["lpips"] = f"{network[0]}, {network[1].name}"
    use = np.bincount(codes.ravel(), minlength=model.codebook_size)
    other = pixels.psnr(theirs, images)
    return Reconstructions(metrics, images, ours, theirs, psnr, other, use)


def codebook(tokens: Array, episodes: Array, size: int) -> dict[str, Figure]:
    """Share of codes in use, and perplexity exp H of how often each is used.

    The intervals are the jackknife's over episodes (two standard errors; Efron & Stein 1981). A
    bootstrap would not do: a resample lacks a third of the episodes and every code that only they
    use, so its whole interval lies below the count (on counting kinds by the jackknife: Heltshe &
    Forrester 1983).

    Args:
        tokens: [N, T], those of each picture.
        episodes: [N] labels.
        size: of the codebook.
    """
    _, label = np.unique(episodes, return_inverse=True)
    counts = np.zeros((label.max() + 1, size))
    np.add.at(counts, (np.repeat(label, tokens.shape[1]), tokens.ravel()), 1)
    total, n = counts.sum(0), len(counts)
    found = {}
    for name, measure, most in (("use", _use, 1.0), ("perplexity", _perplexity, float(size))):
        value = float(measure(total[None])[0])
        without = measure(total - counts) if n > 1 else np.full(1, value)
        error = float(np.sqrt((n - 1) * without.var()))
        low, high = max(value - 1.96 * error, 0.0), min(value + 1.96 * error, most)
        found[name] = {"mean": value, "low": low, "high": high, "n": len(tokens)}
    return found


def _use(counts: Array) -> Array:
    share: Array = (counts > 0).mean(-1)
    return share


def _perplexity(counts: Array) -> Array:
    share = counts / counts.sum(-1, keepdims=True)
    logs = np.log(share, where=share > 0, out=np.zeros_like(share))
    found: Array = np.exp(-(share * logs).sum(-1))
    return found


def cost(model: Tokenizer, images: Tensor) -> dict[str, Figure]:
    """Parameters, milliseconds (their median) and bits a picture, compression, memory.

    Args:
        model: in eval mode.
        images: each is encoded and decoded alone, uint8 [N, H, W, 3].
    """
    device = next(model.parameters()).device
    times = []
    for image in torch.split(images, 1):
        begun = time.perf_counter()
        model.decode(model.encode(image.to(device))).cpu()
        times.append(1000 * (time.perf_counter() - begun))
    warm = np.array(times[1:] or times)  # the first one pays for what is set up once
    raw = 8 * images[0].numel()
    if device.type == "cuda":
        memory = torch.cuda.max_memory_reserved(device)
    else:  # of this whole process, so more than the model needs; macOS counts bytes
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        memory = peak if sys.platform == "darwin" else 1024 * peak
    parameters = sum(weight.numel() for weight in model.parameters())
    return {
        "parameters": constant(float(parameters), 1),
        "ms_per_image": _median(warm),
        "bits_per_image": constant(float(model.bits_per_image), 1),
        "compression": constant(raw / model.bits_per_image, 1),
        "memory_gb": constant(memory / 1e9, 1),
    }


def _median(values: Array, resamples: int = 1000, seed: int = 0) -> Figure:
    """The median: a machine that is busy with something else for a moment says nothing."""
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(np.median(values[drawn], 1), [0.025, 0.975])
    middle = float(np.median(values))
    return {"mean": middle, "low": float(low), "high": float(high), "n": len(values)}


def draw(found: Reconstructions, folder: Any, rows: int = 6) -> None:
    """``tokens.png``: frames, what the tokenizer and JPEG make of them, error maps;
    ``psnr.png``: how PSNR is distributed; ``codes.png``: how often codes are used.
    """
    from iwm.evaluation.frame_pictures import error_map, histogram, ranked
    from iwm.evaluation.pictures import strips

    lines: list[Sequence[Array]] = []
    for true, made, other in zip(
        found.true[:rows], found.made[:rows], found.jpeg[:rows], strict=True
    ):
        pair = error_map(made, true), error_map(other, true)
        lines.append([true.numpy(), made.numpy(), pair[0], other.numpy(), pair[1]])
    titles = ["frame", "tokens", "error x 4", "JPEG, same bits", "error x 4"]
    labels = [
        f"{ours:.1f} dB\nJPEG {theirs:.1f}"
        for ours, theirs in zip(found.psnr[:rows], found.jpeg_psnr[:rows], strict=True)
    ]
    strips(lines, titles, folder / "tokens.png", labels)
    histogram(
        {"tokens": found.psnr, "JPEG, same bits": found.jpeg_psnr},
        "PSNR of held-out frames",
        "dB",
        folder / "psnr.png",
    )
    ranked(found.use, "Codes by how often they are used", folder / "codes.png")

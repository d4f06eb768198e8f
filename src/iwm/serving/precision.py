"""bfloat16 where it helps: measured at start against the same weights in float32.

Half as many bytes to read is faster only on hardware with bfloat16 arithmetic (AVX-512 BF16,
AMX, accelerators); elsewhere it is emulated and many times slower. And it rounds. So it is
refused beyond :data:`MAX_ERROR`, and left off, with a line in the log, where it is not faster.
int8 weights (dynamic quantisation) are no choice: ViT-B/16 latents moved by 5 % with them.
"""

from __future__ import annotations

import copy
import logging
import statistics
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from iwm.errors import ConfigError
from iwm.serving.config import Precision
from iwm.serving.engine import Engine

logger = logging.getLogger("iwm.serving")

MAX_ERROR = 0.02
"""Largest relative error, |z - z32| / |z32|, of any probe's latent or of its rollout of 4."""
_STEPS = 4
_TIMED = 3


def load_checked(folder: Path, device: str, precision: Precision) -> Engine:
    """Load a model; in lower precision where that is within the bound, and faster.

    Raises:
        ModelError: as :meth:`Engine.load`.
        ConfigError: no such device, or an error beyond :data:`MAX_ERROR`.
    """
    full = Engine.load(folder, device)
    if precision == "float32":
        return full
    return checked(full, precision)


def checked(full: Engine, precision: Precision) -> Engine:
    """The same model in ``precision``, or ``full`` itself where that is no faster.

    Raises:
        ConfigError: an error beyond :data:`MAX_ERROR`.
    """
    model, device = copy.deepcopy(full.model), str(full.device)
    low = Engine(model, device, full.calibration, full.card, precision, full.folder)
    error = relative_error(full, low)
    if not error <= MAX_ERROR:
        raise ConfigError(
            f"IWM_PRECISION: {precision} moves latents by {error:.1%}, more than {MAX_ERROR:.0%}"
        )
    slow, fast = encode_ms(full), encode_ms(low)
    said = f"{precision}: error {error:.2%}, /encode {fast:.1f} ms against {slow:.1f} in float32"
    if fast >= slow:
        logger.warning("%s; left off", said)
        return full
    logger.info("%s", said)
    return low


def relative_error(full: Engine, low: Engine) -> float:
    """Largest relative error of the probes' latents, and of a rollout from the same latents."""
    images = probes(full.preprocess.size)
    z_cls = full.encode(images).z_cls
    generator = np.random.default_rng(0)
    actions = generator.random((len(images), _STEPS, full.aug_dim), np.float32)
    actions[:, :, full.augmentation_dim :] = 0.0
    if full.vocabulary:
        named = generator.integers(len(full.vocabulary), size=actions.shape[:2])
        places = (named + full.augmentation_dim)[..., None]
        np.put_along_axis(actions, places, np.float32(1.0), axis=-1)
    pairs = [
        (low.encode(images).z_cls, z_cls),
        (low.rollout(z_cls, actions).z_cls, full.rollout(z_cls, actions).z_cls),
    ]
    return max(
        float((np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)).max()) for a, b in pairs
    )


def probes(size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Six images [6, H, W, 3]: a dark and a bright one, two slopes, two of noise."""
    height, width = size
    rows, columns = np.linspace(0, 255, height), np.linspace(0, 255, width)
    grey = [np.full(size, value) for value in (8.0, 240.0)]
    grey += [np.broadcast_to(rows[:, None], size), np.broadcast_to(columns, size)]
    images = [np.repeat(image[..., None], 3, axis=-1) for image in grey]
    noise = np.random.default_rng(0).integers(0, 256, (2, height, width, 3))
    return np.concatenate([np.stack(images), noise]).astype(np.uint8)


def encode_ms(engine: Engine) -> float:
    """Median time of encoding one image, wall clock."""
    image = probes(engine.preprocess.size)[-1:]
    elapsed = []
    for _ in range(_TIMED):
        started = time.perf_counter()
        engine.encode(image)
        elapsed.append(1000 * (time.perf_counter() - started))
    return statistics.median(elapsed)

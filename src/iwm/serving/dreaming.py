"""A generative model, ready to answer: reconstruct an image, dream the frames that follow.

Knows neither HTTP nor Gradio: the service's ``/reconstruct`` and ``/dream`` and the app of
``iwm play`` stand on it. Frames are uint8 RGB ``[H, W, 3]``, RGB, at the model's own size
(:attr:`Codec.preprocess` brings any picture there); an action leads from the frame before it to
the one after it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iwm.errors import DataError, ModelError, ServiceError
from iwm.files import read_json
from iwm.serving.actions import position
from iwm.serving.preprocess import Preprocess

Image = npt.NDArray[np.uint8]
Images = npt.NDArray[np.uint8]

TOKENIZER, DYNAMICS = "vqvae", "vqvae-dynamics"
"""What ``config.json`` calls the two models; the second carries the first."""
UNKNOWN_ACTION = -1
MAX_SESSIONS = 8
BITS_A_PIXEL = 24
"""Of an uncompressed RGB image: what compression is measured against."""


@dataclass(frozen=True)
class Reconstruction:
    """An image at the model's size, what came back from its tokens, and how near that is."""

    original: Image
    image: Image
    psnr: float
    """dB, at most 60."""
    ssim: float
    tokens: tuple[int, int]
    """Rows and columns of the grid of tokens."""
    codes: int
    """Words of the codebook."""
    bits: float
    """Of all tokens, each at log2(codes)."""

    @property
    def compression(self) -> float:
        """Uncompressed bits over :attr:`bits`."""
        height, width = self.original.shape[:2]
        return float(height * width * BITS_A_PIXEL / self.bits)

    @property
    def error(self) -> npt.NDArray[np.float32]:
        """Mean absolute difference over the colours, ``[H, W]``, in grey levels (0 to 255)."""
        difference = self.original.astype(np.float32) - self.image
        found: npt.NDArray[np.float32] = np.abs(difference).mean(-1)
        return found


@dataclass(frozen=True)
class Start:
    """Where a dream begins: real frames, oldest first, and what led from each to the next."""

    frames: Images
    """``[T, H, W, 3]``, at least one."""
    actions: tuple[str | None, ...] | None = None
    """T - 1 names, ``None`` where one is not known; all of them by default."""
    caption: str = ""


class Codec:
    """A VQ-VAE: images to tokens and back.

    Args:
        model: as ``iwm.models.vqvae`` makes it.
        device: see :func:`iwm.serving.device.choose_device`.
        card: facts about the model.
    """

    def __init__(
        self, model: Any, device: str = "auto", card: dict[str, Any] | None = None
    ) -> None:
        from iwm.serving.device import choose_device

        self.device = choose_device(device)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.card = card or {}
        self.preprocess = Preprocess.of_model(model)
        # The first call imports the figures' packages and chooses kernels: seconds.
        self.reconstruct(np.zeros((1, *self.size, 3), np.uint8))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its images."""
        return self.preprocess.size

    def reconstruct(self, images: Images) -> list[Reconstruction]:
        """Through the tokens and back: images ``[B, H, W, 3]`` at the model's size."""
        from iwm.evaluation.pixels import psnr, ssim

        grid = (int(self.model.grid[0]), int(self.model.grid[1]))
        codes, bits = int(self.model.codebook_size), float(self.model.bits_per_image)
        true = self.tensor(images)
        made = self.model.reconstruct(true)
        likeness = zip(psnr(made, true), ssim(made, true), strict=True)
        return [
            Reconstruction(image, back, float(decibels), float(similarity), grid, codes, bits)
            for image, back, (decibels, similarity) in zip(
                images, _numbers(made), likeness, strict=True
            )
        ]

    def tensor(self, array: npt.NDArray[Any]) -> Any:
        """An array on the model's device; copied where it may not be written to."""
        import torch

        return torch.from_numpy(np.require(array, requirements=("C", "W"))).to(self.device)


class Dreamer:
    """Token dynamics with their tokenizer.

    Args:
        model: as ``iwm.models.vqvae.dynamics`` makes it.
        device: see :func:`iwm.serving.device.choose_device`.
        card: facts about the model.
    """

    def __init__(
        self, model: Any, device: str = "auto", card: dict[str, Any] | None = None
    ) -> None:
        self.codec = Codec(model.tokenizer, device, card)
        self.device = self.codec.device
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.card = card or {}
        self.vocabulary: tuple[str, ...] = tuple(model.vocabulary)
        self.context = int(model.context)
        """Most frames that a dream can begin with."""
        if not self.vocabulary:
            raise ModelError(f"{self.name}: knows no actions by name, so nobody can play in it")
        blank = np.zeros((1, *self.codec.size, 3), np.uint8)
        self.dream(Start(blank), self.vocabulary[:1])  # first calls allocate and choose kernels

    @property
    def name(self) -> str:
        """Name and version: ``iwm-vqvae-dynamics/3``."""
        return f"{self.card.get('model') or DYNAMICS}/{self.card.get('version') or 0}"

    @property
    def idle(self) -> str | None:
        """The action of one who does nothing; ``None`` where the game has none."""
        return next((name for name in ("noop", "wait", "stay") if name in self.vocabulary), None)

    def begin(self, start: Start, seed: int = 0) -> Any:
        """The model's own state after ``start``; ``step`` continues it.

        Tokens are drawn: the mean of what may come, which evaluation measures, fades.

        Raises:
            DataError: too many frames, another size, or actions that do not fit them.
        """
        from iwm.models.vqvae.dream import LIVELY

        frames, count = start.frames, len(start.frames)
        if not 1 <= count <= self.context:
            raise DataError(f"frames: expected 1 to {self.context}, given {count}")
        if frames.shape[1:] != (*self.codec.size, 3):
            given, wanted = ("x".join(map(str, of)) for of in (frames.shape[1:3], self.codec.size))
            raise DataError(f"frames: expected {wanted} pixels, given {given}")
        known = (None,) * (count - 1) if start.actions is None else start.actions
        if len(known) != count - 1:
            raise DataError(
                f"past_actions: expected {count - 1}, one from each of {count} frames to the "
                f"next, given {len(known)}"
            )
        actions = np.array([self._places(known)], np.int64).reshape(1, count - 1)
        tensor = self.codec.tensor
        return self.model.start(
            tensor(frames[None]), tensor(actions), seed=seed, temperature=LIVELY
        )

    def step(self, dream: Any, action: str) -> Image:
        """The next frame of a dream.

        Raises:
            DataError: an action that the vocabulary lacks; the line lists it.
        """
        place = np.array(self._places([action]), np.int64)
        frame: Image = _numbers(dream.step(self.codec.tensor(place)))[0]
        return frame

    def dream(
        self,
        start: Start,
        actions: Sequence[str],
        seed: int = 0,
        abandoned: Callable[[], bool] = lambda: False,
    ) -> Images:
        """The frames ``[K, H, W, 3]`` that K actions lead to.

        Args:
            start: where it begins.
            actions: names of the vocabulary, or common names for them.
            seed: of the sampling; the same seed, the same dream.
            abandoned: asked before each step; true ends the dream early.

        Raises:
            DataError: as :meth:`begin` and :meth:`step`.
        """
        self._places(actions)
        dream, frames = self.begin(start, seed), []
        for action in actions:
            if abandoned():
                break
            frames.append(self.step(dream, action))
        return np.stack(frames) if frames else np.zeros((0, *self.codec.size, 3), np.uint8)

    def _places(self, names: Sequence[str | None]) -> list[int]:
        return [
            UNKNOWN_ACTION if name is None else position(name, self.vocabulary) for name in names
        ]


class Session:
    """One visitor's dream, from the last reset on. Calls may come from any thread in turn."""

    def __init__(self, dreamer: Dreamer) -> None:
        self._dreamer = dreamer
        self._dream: Any = None
        self.steps = 0
        """Frames dreamt since the last reset."""

    def reset(self, start: Start, seed: int = 0) -> Image:
        """Begin anew; returns the last real frame.

        Raises:
            DataError: as :meth:`Dreamer.begin`.
        """
        self._dream, self.steps = self._dreamer.begin(start, seed), 0
        last: Image = start.frames[-1]
        return last

    def step(self, action: str) -> Image:
        """Act; returns the frame that follows.

        Raises:
            DataError: an action that the vocabulary lacks, or no :meth:`reset` yet.
        """
        if self._dream is None:
            raise DataError("reset: expected before the first action")
        frame = self._dreamer.step(self._dream, action)
        self.steps += 1
        return frame


class Sessions:
    """At most ``most`` sessions at a time: each holds the model's cache of its own dream."""

    def __init__(self, dreamer: Dreamer, most: int = MAX_SESSIONS) -> None:
        self._dreamer, self._most = dreamer, most
        self._lock = threading.Lock()
        self.open = 0

    @contextmanager
    def place(self) -> Iterator[Session]:
        """A session of one's own until the block ends.

        Raises:
            ServiceError: all places are taken.
        """
        with self._lock:
            if self.open >= self._most:
                raise ServiceError(f"all {self._most} places to play are taken; try again later")
            self.open += 1
        try:
            yield Session(self._dreamer)
        finally:
            with self._lock:
                self.open -= 1


def load_dreamer(folder: Path, device: str = "auto") -> Dreamer:
    """Load a model of token dynamics.

    Raises:
        ModelError: no such folder, another kind of model, or one that cannot be loaded.
        ConfigError: no such device.
    """
    return Dreamer(_load(folder, DYNAMICS), device, _card(folder))


def load_codec(folder: Path, device: str = "auto") -> Codec:
    """Load a VQ-VAE, as :func:`load_dreamer` does."""
    return Codec(_load(folder, TOKENIZER), device, _card(folder))


def _load(folder: Path, kind: str) -> Any:
    from iwm.models.registry import load_model
    from iwm.models.saving import read_config

    if not folder.is_dir():
        raise ModelError(f"{folder}: no such model folder")
    read_config(folder, kind)
    return load_model(folder)


def _card(folder: Path) -> dict[str, Any]:
    path = folder / "card.json"
    return dict(read_json(path)) if path.exists() else {}


def _numbers(images: Any) -> Images:
    """A tensor of frames as an array."""
    found: Images = images.detach().cpu().numpy()
    return found

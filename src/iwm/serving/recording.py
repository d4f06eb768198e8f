"""A model's steps as recorded programs, which run without the interpreter.

In a small model Python takes longer between the operators than they take themselves, and holds
the lock that reading and writing requests needs. A recorded step (``torch.jit.trace``) is one
call that does the same operators on the same numbers, and lets go of that lock. Of torch's ways
to do so this is the oldest, and marked for replacement by ``torch.compile`` and ``torch.export``;
their code is made by a C++ compiler, which a machine that serves need not have, and not within the
seconds of a start. Where recording does not work, or a program does not answer what the model
answers, the model itself is called, as it is where it computes for so long that Python between
does not matter.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from iwm.models.dynamics import Past
from iwm.models.thin import ROWS, ThinLinear

logger = logging.getLogger("iwm.serving")

WORTH_S = 0.02
"""What takes longer, of the core that calls it, is not recorded, and gets every thread."""
RUNS = 3
"""Calls after which a program is as fast as it gets."""
SIZES = (1, 4, 16, 32)
"""Batches of which it is measured how many threads pay."""
PAYS = 1.2
"""All threads are used where they are so many times as fast as one: the other cores have requests
to read, images to decode and answers to write."""

Inputs = tuple[Any, ...]
Kind = Callable[..., Hashable]


class Recorded:
    """A module, and programs of it by the kind of its inputs.

    Args:
        module: from tensors, or tuples of them, to the same; batch first.
        kind: of inputs; one program answers all of a kind. ``None``: no program does.
    """

    def __init__(self, module: nn.Module, kind: Kind) -> None:
        self._module, self._kind = module.eval(), kind
        self._programs: dict[Hashable, Any] = {}

    def __call__(self, *inputs: Any) -> Any:
        """What the module answers."""
        program = self._programs.get(self._kind(*inputs))
        return self._module(*inputs) if program is None else program(*inputs)

    def record(self, examples: Iterable[Sequence[Inputs]]) -> None:
        """Record a program of each kind, where it pays and is right.

        Args:
            examples: for each kind, the quickest first, inputs of several sizes: the first are
                recorded with, all are compared.
        """
        for several in examples:
            if not _worth_it(self._module, several[0]):
                return
            if program := _program(self._module, several):
                self._programs[self._kind(*several[0])] = program


def _program(module: nn.Module, several: Sequence[Inputs]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what changes with a batch's size is compared below
            traced = torch.jit.trace(module, several[0], check_trace=False)  # type: ignore[no-untyped-call]
        # The method alone: the module around it is a cycle, which would keep an exchanged model.
        program = traced.forward
        for inputs in (*several, *[several[0]] * RUNS):
            if not _equal(program(*inputs), module(*inputs)):
                raise ValueError("a program answers something else")
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        logger.debug("%s is not recorded: %s", type(module).__name__, reason[-1])
        return None
    return program


def _worth_it(module: nn.Module, inputs: Inputs) -> bool:
    # On one thread: on cores that others use, too, several wait for one another, and their waiting
    # counts as work.
    with _threads(1):
        for run in range(RUNS):
            started = time.thread_time()
            module(*inputs)
            took = time.thread_time() - started
            # The first run is cold; a later one that is not far off may still be better once more.
            if took < WORTH_S or (run and took > 3 * WORTH_S):
                break
    return took < WORTH_S


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Inside the block the calling thread uses so many."""
    every = torch.get_num_threads()
    if number == every:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(every)


def _equal(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, Tensor):
        return found.shape == wanted.shape and torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)
    return all(_equal(each, other) for each, other in zip(found, wanted, strict=True))


class Threads:
    """How many threads of torch pay for a batch: one, or all."""

    def __init__(self) -> None:
        self._alone = 0

    def measure(self, work: Callable[..., Any], example: Callable[[int], Inputs]) -> None:
        """By running it.

        Args:
            work: what is computed.
            example: from the size of a batch to its inputs.
        """
        for size in SIZES if torch.get_num_threads() > 1 else ():
            inputs = example(size)
            with _threads(1):
                alone = _shortest(work, inputs)
            if alone > WORTH_S or alone > PAYS * _shortest(work, inputs):
                return
            self._alone = size

    @contextmanager
    def chosen(self, batch: int) -> Iterator[None]:
        """Inside the block the calling thread uses as many."""
        with _threads(1 if batch <= self._alone else torch.get_num_threads()):
            yield


def _shortest(work: Callable[..., Any], inputs: Inputs) -> float:
    """Wall-clock seconds; what takes long is run twice."""
    found = float("inf")
    for run in range(RUNS):
        started = time.perf_counter()
        work(*inputs)
        found = min(found, time.perf_counter() - started)
        if run and found > WORTH_S:
            break
    return found


class Encode(nn.Module):
    """Pixels [B, 3, H, W] uint8 -> ``z_cls`` [B, D] and ``z_patches`` [B, N, D]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder, self._encode = model.encoder, model.encode  # what is not used costs, too

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """See the model's own ``encode``."""
        z_cls, z_patches = self._encode(pixels)
        return z_cls, z_patches


class Step(nn.Module):
    """A model without memory: latent [B, D] and action [B, A] -> the next latent, and the log of
    its error [B].
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.predictor, self._predict = model.predictor, model.predict

    def forward(self, latent: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """See the model's own ``predict``."""
        made = self._predict(latent, action)
        return made.z_cls, made.log_error


class FirstStep(nn.Module):
    """Dynamics with memory, and nothing remembered yet: as :class:`Step`, then keys and values."""

    def __init__(self, dynamics: Any) -> None:
        super().__init__()
        self.dynamics = dynamics

    def forward(self, latent: Tensor, action: Tensor) -> tuple[Any, ...]:
        """See :meth:`iwm.models.dynamics.Dynamics.step`."""
        return self._step(latent, action, None)

    def _step(self, latent: Tensor, action: Tensor, past: Past | None) -> tuple[Any, ...]:
        feature, predicted, now = self.dynamics.step(latent, action, past)
        return predicted, self.dynamics.log_error(feature), now.keys, now.values


class NextStep(FirstStep):
    """As :class:`FirstStep`, from the keys and values that the step before left."""

    def forward(  # type: ignore[override]
        self, latent: Tensor, action: Tensor, keys: tuple[Tensor, ...], values: tuple[Tensor, ...]
    ) -> tuple[Any, ...]:
        """See :meth:`iwm.models.dynamics.Dynamics.step`."""
        return self._step(latent, action, Past(keys, values))


class Programs:
    """What an engine computes most: images, and predictions from ``z_cls`` alone.

    Args:
        model: an IWM or ActionIWM, ready to answer.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        remembers = hasattr(model, "dynamics")
        rows, columns = model.config.grid
        self._tokens = (1 + rows * columns) * _turned(model.encoder)
        self._encode = Recorded(Encode(model), partial(_kind_of_images, self._tokens))
        first = FirstStep(model.dynamics) if remembers else Step(model)
        self._turned = _turned(model.dynamics if remembers else model.predictor)
        kind = partial(_kind_of_step, self._turned)
        self._first = Recorded(first, kind)
        self._next: Recorded | None = None
        if remembers and model.config.history > 1:
            self._next = Recorded(NextStep(model.dynamics), kind)
        self._encoding, self._stepping = Threads(), Threads()

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """``z_cls`` [B, D] and ``z_patches`` [B, N, D] of pixels [B, 3, H, W], uint8."""
        with self._encoding.chosen(len(pixels)):
            z_cls, z_patches = self._encode(pixels)
            return z_cls.float(), z_patches.float()

    def rollout(
        self, latent: Tensor, actions: Tensor, past: Past | None = None
    ) -> tuple[Tensor, Tensor]:
        """K steps, each from the one before: latents [B, K, D] and logs of their errors [B, K].

        Args:
            latent: [B, D].
            actions: [B, K, A].
            past: what a model with memory keeps of earlier frames.
        """
        latents, errors = [], []
        memory: Sequence[Any] = () if past is None else (past.keys, past.values)
        with self._stepping.chosen(len(latent)):
            for step in range(actions.shape[1]):
                action = actions[:, step]
                one = self._next if self._next and memory else self._first
                latent, error, *memory = one(latent, action, *memory)
                latents.append(latent)
                errors.append(error)
            return torch.stack(latents, 1).float(), torch.stack(errors, 1).float()

    def record(self) -> None:
        """Make programs of them, and choose their threads, where that pays."""
        config, width = self._model.config, self._model.latent_dim
        draw = torch.Generator().manual_seed(0)

        def images(count: int) -> Inputs:
            shape = (count, 3, *config.image_size)
            return (torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8),)

        def latents(count: int) -> Inputs:
            drawn = torch.randn(count, width, generator=draw)
            return drawn, torch.zeros(count, self._model.aug_dim)

        few = max(ROWS) // max(self._tokens, 1)  # images whose tokens are as many rows
        many = max(few, 1) + 1
        sizes: list[tuple[int, ...]] = [(2, 1, 5)]
        if self._tokens:
            sizes = [(1,), *([(2, few)] if few > 1 else []), (many, many + 1)]
        self._encode.record([[images(count) for count in several] for several in sizes])
        sizes = [(1,), (2, 5)] if self._turned else [(2, 1, 5)]
        steps = [[latents(count) for count in several] for several in sizes]
        self._first.record(steps)
        if self._next is not None:
            for _ in range(1, config.history):
                steps = [[self._further(each) for each in several] for several in steps]
                self._next.record(steps)
        self._encoding.measure(self._encode, images)
        self._stepping.measure(self._first, latents)

    def _further(self, inputs: Inputs) -> Inputs:
        """The step after one with these inputs."""
        latent, action, *memory = inputs
        step = self._next if self._next and memory else self._first
        latent, _, *memory = step(*inputs)
        return latent, action, *memory


def _kind_of_images(tokens: int, pixels: Tensor) -> Hashable:
    """Which way round linear maps are computed (:mod:`iwm.models.thin`) is part of a program.

    Args:
        tokens: of an image; none where no map is turned.
        pixels: [B, ...].
    """
    batch = pixels.shape[0]
    return bool(tokens) and (batch == 1, batch * tokens in ROWS)


def _kind_of_step(turned: bool, latent: Tensor, _: Tensor, *past: tuple[Tensor, ...]) -> Hashable:
    """As of images; and how much is remembered, since masks are made of it."""
    batch = latent.shape[0]
    return turned and (batch == 1, batch in ROWS), past[0][0].shape[2] if past else 0


def _turned(module: nn.Module) -> bool:
    return any(isinstance(each, ThinLinear) for each in module.modules())

"""Where a model runs, and in which numbers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from iwm.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """The device that ``name`` means; ``auto`` takes the first accelerator, else the CPU.

    Raises:
        ConfigError: no such device here. There is no silent fall-back.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"IWM_DEVICE: no device {name!r} here: {reason}") from None
    if device.type == "meta":
        raise ConfigError(f"IWM_DEVICE: no device {name!r} here: it holds no numbers")
    return device


class Numbers:
    """The numbers that a model computes in: ``with numbers: ...`` around every call.

    Args:
        model: its parameters are changed to these numbers.
        device: where it runs.
        precision: ``float32`` or ``bfloat16``.
    """

    def __init__(self, model: Any, device: torch.device, precision: str) -> None:
        self.precision = precision
        self._device = device
        if precision == "bfloat16":
            model.bfloat16()

    def context(self) -> AbstractContextManager[object]:
        """No gradients are the caller's business; see :meth:`Engine.encode`."""
        if self.precision == "float32":
            return nullcontext()  # entering an autocast that is off costs what an operator does
        return torch.autocast(self._device.type, torch.bfloat16)

"""Linear maps of a few rows on the CPU, the other way round.

``x W^T`` with a handful of rows and a large ``W`` is what a world model computes for a step of a
few latents. BLAS libraries pack the large matrix for it, which takes longer than the product;
``(W x^T)^T`` is the same numbers, and there the small matrix is packed. Where it is not measured
to be faster, it is not used.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS = range(2, 129)
"""Rows for which turning round pays; one row alone is a matrix times a vector anyway."""
LARGE = 2**18
"""Numbers of a weight that is worth it."""
_PROBE_WIDTH, _PROBE_ROWS, _PROBE_TIMES = 768, 4, 7
_CLEARLY = 0.9


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` without gradients: x [..., K], weight [N, K], bias [N] -> [..., N]."""
    rows = x.numel() // x.shape[-1]
    if (
        rows not in ROWS
        or weight.numel() < LARGE
        or x.device.type != "cpu"
        or not x.dtype == weight.dtype == torch.float32
        or not turning_pays()
    ):
        return F.linear(x, weight, bias)
    return _turned(x.reshape(rows, -1), weight, bias).view(*x.shape[:-1], -1)


def _turned(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = weight @ x.t() if bias is None else torch.addmm(bias.unsqueeze(1), weight, x.t())
    return product.t().contiguous()


class ThinLinear(nn.Linear):
    """A linear layer that only serves."""

    def forward(self, input: Tensor) -> Tensor:  # the name that nn.Linear gives it
        """See :func:`linear`."""
        return linear(input, self.weight, self.bias)


def thin(model: nn.Module) -> None:
    """Let the large linear layers of a model that only serves compute few rows the faster way."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear and child.weight.numel() >= LARGE:
                layer = ThinLinear(
                    child.in_features, child.out_features, child.bias is not None, device="meta"
                )
                layer.weight, layer.bias = child.weight, child.bias
                setattr(module, name, layer.train(child.training))


@cache
def turning_pays() -> bool:
    """Whether it is faster here, by a product of each kind; milliseconds, once a process."""
    weight = torch.ones(_PROBE_WIDTH, _PROBE_WIDTH)
    bias, x = torch.ones(_PROBE_WIDTH), torch.ones(_PROBE_ROWS, _PROBE_WIDTH)
    usual = _shortest(lambda: F.linear(x, weight, bias))
    return _shortest(lambda: _turned(x, weight, bias)) < _CLEARLY * usual


def _shortest(work: Callable[[], Tensor]) -> float:
    found = []
    for _ in range(_PROBE_TIMES):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)

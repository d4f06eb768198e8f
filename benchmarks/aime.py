"""One training step of AIME at [8, 16, 3, 64, 64], and where its time goes.

    python -m benchmarks.aime [--repeats 5] [--json FILE]

A step is ``forward_sequence``, the three losses and one backward pass of their sum; the goal is
under two seconds on two cores. Beside it stand balancing by rotation (a backward pass a task,
and the arithmetic) and, for each pillar, forward and backward of its module alone on the inputs
it had. Shares are of the sum over the parts; ``CPU ms`` is processor time over all threads,
which other work on the machine does not change much.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

GOAL_S = 2.0
SHAPE = (8, 16, 3, 64, 64)
PILLARS = {
    "1 perceiver": "perceiver",
    "2 prior": "prior",
    "3 dynamics": "recurrence",
    "4 attention": "attention",
    "- encoder": "encoder",
    "- decoder": "decoder",
    "- teacher": "teacher",
}


@dataclass(frozen=True)
class Row:
    """One part of a step: medians over repeats."""

    what: str
    milliseconds: float
    cpu_ms: float


def timed(what: str, function: Callable[[], object], repeats: int) -> Row:
    """Run ``repeats`` times after one run that warms up."""
    laps = []
    for turn in range(repeats + 1):
        began, worked = time.perf_counter(), time.process_time()
        function()
        if turn:
            laps.append((time.perf_counter() - began, time.process_time() - worked))
    wall, cpu = (1000 * statistics.median(lap) for lap in zip(*laps, strict=True))
    return Row(what, wall, cpu)


def tensors(value: Any) -> list[Any]:
    """All tensors with a gradient in nested outputs."""
    if is_dataclass(value):
        value = list(vars(value).values())
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in tensors(item)]
    return [value] if getattr(value, "requires_grad", False) else []


def passes(module: Any, inputs: tuple[Any, ...]) -> Callable[[], None]:
    """Forward and backward of one module on the inputs it had in a step."""
    import torch

    leaves = [
        x.detach().requires_grad_() if torch.is_tensor(x) and x.requires_grad else x for x in inputs
    ]

    def once() -> None:
        outputs = tensors(module(*leaves))
        if outputs:
            torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])

    return once


def measure(repeats: int) -> tuple[list[Row], list[Row]]:
    """Whole steps, and the parts of one."""
    import torch

    from iwm.models.aime import DPGMMVariationalRecurrentAutoencoder
    from iwm.objectives.aime import LossAggregator
    from iwm.objectives.gradients import RGB, task_gradients

    torch.manual_seed(0)
    model = DPGMMVariationalRecurrentAutoencoder()
    parameters = [p for p in model.parameters() if p.requires_grad]
    observations, actions = torch.rand(SHAPE), torch.randn(*SHAPE[:2], 6)
    seen: dict[str, tuple[Any, ...]] = {}
    hooks = [
        getattr(model, name).register_forward_hook(
            lambda _, inputs, __, name=name: seen.__setitem__(name, inputs)
        )
        for name in PILLARS.values()
    ]
    aggregator = LossAggregator()
    outputs = model.forward_sequence(observations, actions)
    for hook in hooks:
        hook.remove()

    def losses() -> list[Any]:
        return aggregator.compute_losses(model.forward_sequence(observations, actions))[1]

    def summed() -> None:
        model.zero_grad()
        torch.stack(losses()).sum().backward()

    balancer = RGB()
    balancer.get_share_params = model.parameters

    def balanced() -> None:
        model.zero_grad()
        balancer.backward(losses())

    whole = [
        timed("forward + backward of the sum", summed, repeats),
        timed("forward + rotated gradients", balanced, repeats),
    ]
    parts = [
        timed(title, passes(getattr(model, name), seen[name]), repeats)
        for title, name in PILLARS.items()
    ]
    held = {
        key: value.detach().requires_grad_(value.requires_grad) if torch.is_tensor(value) else value
        for key, value in outputs.items()
    }
    parts.append(
        timed(
            "- losses",
            lambda: torch.stack(aggregator.compute_losses(held)[1]).sum().backward(),
            repeats,
        )
    )
    gradients = task_gradients(losses(), parameters)
    parts.append(timed("5 balancing", lambda: balancer.combine(gradients), repeats))
    return whole, parts


def main() -> None:
    """Measure, print the table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5, help="steps of each kind; the median")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    whole, parts = measure(max(1, options.repeats))
    total = sum(row.cpu_ms for row in parts)
    print(f"{'':32}{'ms':>8}{'CPU ms':>8}{'share':>8}")
    for row in whole:
        print(f"{row.what:32}{row.milliseconds:8.0f}{row.cpu_ms:8.0f}")
    for row in parts:
        share = row.cpu_ms / total
        print(f"{row.what:32}{row.milliseconds:8.0f}{row.cpu_ms:8.0f}{share:8.0%}")
    verdict = "pass" if whole[0].milliseconds < 1000 * GOAL_S else "miss"
    print(f"goal: a step under {GOAL_S:.0f} s on two cores: {verdict}")
    if options.json:
        from iwm.files import write_json

        write_json(
            options.json, {"step": list(map(asdict, whole)), "parts": list(map(asdict, parts))}
        )


if __name__ == "__main__":
    main()

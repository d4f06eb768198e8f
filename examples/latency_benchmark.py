"""How long a round of ten agents takes: ten futures of fifty steps each, 49 bytes a message.

    python examples/latency_benchmark.py [--agents 10] [--rounds 200]

The model has the sizes of the specification (256 numbers a state) and is untrained, which costs
the same. benchmarks/coordination.py measures more, against agents that send everything.
"""

from __future__ import annotations

from typing import Annotated

import typer

GATE_MS = 100.0


def main(
    agents: Annotated[int, typer.Option(min=1)] = 10,
    rounds: Annotated[int, typer.Option(min=1)] = 200,
    warmup: Annotated[int, typer.Option(min=0)] = 20,
    state: Annotated[int, typer.Option(min=1, help="Numbers of a state")] = 256,
    horizon: Annotated[int, typer.Option(min=1)] = 50,
) -> None:
    """Measure rounds and print the percentiles."""
    import numpy as np
    import torch

    from iwm.agents.codec import TrajectoryCodec
    from iwm.agents.coordination import Coordinator
    from iwm.agents.imagination import Goal, ImaginedTrajectoryGenerator
    from iwm.agents.intention import IntentionCompressor
    from iwm.models.embodied import WorldModel

    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    model = WorldModel(state_dim=state, horizon=horizon, trainable=False).eval()
    torch.nn.init.normal_(model.dynamics.move.weight, std=0.05)  # it starts at rest
    generator = ImaginedTrajectoryGenerator(model, horizon=horizon)
    futures = generator.generate(draw.normal(size=(20, state))).states
    compressor = IntentionCompressor(TrajectoryCodec.fit(futures.reshape(-1, horizon, state)))
    names = [f"agent{number}" for number in range(agents)]
    team = Coordinator(generator, compressor, names)
    goals = [Goal(number) for number in range(agents)]
    laps = [
        team.step(draw.normal(size=(agents, state)), goals).milliseconds
        for _ in range(warmup + rounds)
    ][warmup:]
    for phase in laps[0]:
        p50, p95 = np.percentile([lap[phase] for lap in laps], (50, 95))
        print(f"{phase:10} p50 {p50:7.2f} ms   p95 {p95:7.2f} ms")
    p95 = float(np.percentile([lap["total"] for lap in laps], 95))
    verdict = "pass" if p95 < GATE_MS else "miss"
    print(f"{agents} agents, p95 under {GATE_MS:.0f} ms: {verdict}")


if __name__ == "__main__":
    typer.run(main)

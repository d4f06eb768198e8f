"""Agents that tell each other what they mean to do, and keep out of each other's way.

    python examples/multi_agent_coordination.py [--agents 3] [--model artifacts/models/embodied]

Each round every agent imagines ten futures, says in at most 49 bytes which one it means to
follow, reads what the others said, and makes way for those before it. One agent lives elsewhere:
it sends late, then nonsense, then nothing, and the rounds go on. The world is what the model
predicts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from iwm.errors import one_line_errors


def main(
    agents: Annotated[int, typer.Option(min=1)] = 3,
    rounds: Annotated[int, typer.Option(min=1)] = 6,
    model: Annotated[Path | None, typer.Option(help="Folder of a world model of states")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Play a few rounds and print what was said."""
    with one_line_errors():
        _play(agents, rounds, model, seed)


def _play(agents: int, rounds: int, folder: Path | None, seed: int) -> None:
    import numpy as np
    import torch

    from iwm.agents.codec import TrajectoryCodec
    from iwm.agents.config import CoordinationConfig
    from iwm.agents.coordination import Coordinator
    from iwm.agents.exchange import Message
    from iwm.agents.imagination import Goal, ImaginedTrajectoryGenerator
    from iwm.agents.intention import IntentionCompressor
    from iwm.models.embodied import WorldModel

    torch.manual_seed(seed)
    draw = np.random.default_rng(seed)
    if folder is None:
        model = WorldModel(state_dim=8, latent_dim=32, hidden_dim=64, trainable=False).eval()
        torch.nn.init.normal_(model.dynamics.move.weight, std=0.05)  # it starts at rest
    else:
        model = WorldModel.from_pretrained(folder)
    mean, spread = model.state_mean.numpy(), model.state_std.numpy()
    generator = ImaginedTrajectoryGenerator(model, horizon=model.horizon)
    if folder is None:  # what a trained model brings along
        starts = mean + spread * draw.normal(size=(40, model.state_dim))
        futures = generator.generate(starts).states
        codec = TrajectoryCodec.fit(futures.reshape(-1, *futures.shape[2:]))
    else:
        codec = TrajectoryCodec.load(folder)
    compressor = IntentionCompressor(codec)
    names = [f"agent{number}" for number in range(agents)]
    team = Coordinator(
        generator,
        compressor,
        names,
        peers=["stranger"],
        config=CoordinationConfig(deadline_s=0.02, patience=2),
    )
    wanted = [
        Goal(number, (mean + spread * draw.normal(size=model.state_dim)).astype(np.float32))
        for number in range(agents)
    ]
    states = mean + spread * draw.normal(size=(agents, model.state_dim))
    for number in range(rounds):
        if number == 0:
            plan = generator.generate(states[:1]).trajectory(0, 0)
            team.bus.broadcast(Message("stranger", 0, compressor.compress(plan, "elsewhere", 0.5)))
        elif number == 1:
            team.bus.broadcast(Message("stranger", 0, '{"g":"yesterday"}'))
            team.bus.broadcast(Message("stranger", 1, "I shall go left"))
        done = team.step(states, wanted)
        changed = int((done.announced != done.chosen).sum())
        print(
            f"round {number}: {done.milliseconds['total']:.1f} ms, "
            f"{sum(len(message.text.encode()) for message in done.messages)} bytes said, "
            f"{changed} made way, silent: {', '.join(done.silent) or 'nobody'}"
        )
        for message in done.messages[:1]:
            print(f"   {message.sender}: {message.text}")
        here = torch.as_tensor(states, dtype=torch.float32)
        states = model.predict(here, torch.as_tensor(done.actions)[:, None])[:, 0].numpy()
    print(f"dropped: {dict(team.dropped)}; silent rounds: {dict(team.silences)}")


if __name__ == "__main__":
    typer.run(main)

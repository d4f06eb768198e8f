"""One agent: imagine, reason, compress.

    python examples/basic_usage.py [--model artifacts/models/embodied] [--goal north]

With a trained folder the agent walks in what its model predicts towards a state of the
training data's spread; without one the model is untrained, which shows what travels where. With
IWM_REASONER_URL, IWM_REASONER_MODEL and IWM_REASONER_KEY set, a language model is asked beside
the loop, which never waits for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from iwm.errors import one_line_errors


def main(
    model: Annotated[Path | None, typer.Option(help="Folder of a world model of states")] = None,
    goal: Annotated[str, typer.Option(help="What the agent calls what it wants")] = "north",
    steps: Annotated[int, typer.Option(min=1)] = 5,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Let one agent think and act for a few steps."""
    with one_line_errors():
        _play(model, goal, steps, seed)


def _play(folder: Path | None, name: str, steps: int, seed: int) -> None:
    import numpy as np
    import torch

    from iwm.agents.chat import ChatReasoner
    from iwm.agents.codec import TrajectoryCodec
    from iwm.agents.config import reasoner_config
    from iwm.agents.imagination import Goal, ImaginedTrajectoryGenerator
    from iwm.agents.integrated import IntegratedAgent
    from iwm.agents.intention import IntentionCompressor
    from iwm.agents.reasoner import BackgroundReasoner, HeuristicReasoner, Reasoner
    from iwm.models.embodied import WorldModel

    torch.manual_seed(seed)
    if folder is None:
        model = WorldModel(state_dim=8, latent_dim=32, hidden_dim=64, trainable=False).eval()
        torch.nn.init.normal_(model.dynamics.move.weight, std=0.05)  # it starts at rest
    else:
        model = WorldModel.from_pretrained(folder)
    draw = np.random.default_rng(seed)
    mean, spread = model.state_mean.numpy(), model.state_std.numpy()
    state, target = mean + spread * draw.normal(size=(2, model.state_dim))
    generator = ImaginedTrajectoryGenerator(model, horizon=model.horizon)
    if folder is None:  # what a trained model brings along
        starts = mean + spread * draw.normal(size=(40, model.state_dim))
        futures = generator.generate(starts).states
        codec = TrajectoryCodec.fit(futures.reshape(-1, *futures.shape[2:]))
    else:
        codec = TrajectoryCodec.load(folder)
    compressor = IntentionCompressor(codec)
    config = reasoner_config()
    reasoner: Reasoner = HeuristicReasoner()
    if config is not None:
        reasoner = BackgroundReasoner(ChatReasoner(config), budget_s=0.05)
    agent = IntegratedAgent(generator, compressor, reasoner)
    wanted = Goal(name, target.astype(np.float32))
    for step in range(steps):
        thought = agent.think_and_act(state, wanted)
        heard = compressor.decompress(thought.intention)
        assert heard.trajectory is not None
        plan = thought.trajectory.states
        off = np.sqrt(np.square((heard.trajectory - plan) / codec.scale).mean())
        print(
            f"{step}: future {thought.verdict.index} of {generator.rollouts} "
            f"({thought.verdict.source}, confidence {thought.verdict.confidence:.2f}), "
            f"distance to the goal {np.linalg.norm((state - target) / spread):.2f}"
        )
        print(
            f"   sends {thought.intention} ({len(thought.intention.encode())} bytes; its plan is "
            f"{off:.2f} standard deviations off)"
        )
        action = torch.as_tensor(thought.action)[None, None]
        state = model.predict(torch.as_tensor(state, dtype=torch.float32)[None], action)[0, 0]
        state = state.numpy()


if __name__ == "__main__":
    typer.run(main)

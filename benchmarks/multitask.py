"""Four ways to make one step of three tasks' gradients, on AIME's ELBO, Perceiver, Predictive.

    python -m benchmarks.multitask [--shards FOLDER] [--seeds 3] [--steps 120] [--keep FOLDER]

Arms: the plain sum, the mean of unit gradients, PCGrad (torchjd) and RGB; and each task trained
alone, which sets the scale. Everything else is the same: a small model, the data's order, Adam,
the clipping at norm 5. Task losses are held out, at beta 1. A task's *improvement* is

    (loss at the start - loss at the end) / (the same, of the arm that trained this task alone)

so 1 is as good as having the model to itself. Reported are the mean over the tasks and the worst
task, with the deviation over seeds. Without ``--shards`` the procedural world is recorded anew.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ARMS = ("sum", "unit", "pcgrad", "rgb")
WINDOW, BATCH, HELD_OUT = 8, 4, 8
SMALL: dict[str, Any] = {
    "latent_dim": 16,
    "hidden_dim": 128,
    "perceiver_config": {"width": 32, "context_dim": 64, "token_dim": 16, "num_latents": 4},
    "prior_config": {"width": 64, "alpha_shape": 60.0, "alpha_rate": 20.0},
    "encoder_config": {"base_channels": 8},
    "decoder_config": {"base_channels": 8},
    "attention_config": {"slot_dim": 32, "predictor_channels": 16},
    "action_dim": 0,
    # As the profiles have them: frames foretold are a part of the Predictive task.
    "loss": {"lambda_open_loop": 1.0, "horizon": 4},
}


@dataclass(frozen=True)
class Row:
    """One arm: improvements [seed][task], and seconds a step."""

    arm: str
    improvements: list[list[float]]
    seconds: float

    def over_seeds(self, reduce: Any) -> tuple[float, float]:
        """Mean and deviation over seeds of each seed's mean, or worst, task."""
        values = [reduce(tasks) for tasks in self.improvements]
        return statistics.mean(values), statistics.pstdev(values)


def procedural(folder: Path) -> Path:
    """Shards of the procedural world, recorded in ``folder``."""
    from benchmarks.training import make_shards

    return make_shards(folder, 64, frames=1500).folder


def train(
    arm: str, seed: int, steps: int, batches: list[Any], held: list[Any], names: tuple[str, ...]
) -> tuple[list[float], list[float], float]:
    """Train one arm; held-out task losses before and after, and seconds a step.

    ``arm`` is a balancer's name, or a task's number.
    """
    import torch

    from iwm.models.aime import DPGMMVariationalRecurrentAutoencoder
    from iwm.objectives.aime import TASKS
    from iwm.objectives.gradients import BALANCERS

    torch.manual_seed(seed)
    size = list(batches[0].images.shape[-2:])
    model = DPGMMVariationalRecurrentAutoencoder(**SMALL, image_size=size, vocabulary=list(names))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=5e-4)
    alone = int(arm) if arm.isdigit() else None
    balancer = BALANCERS["sum" if alone is not None else arm]()
    balancer.get_share_params = lambda: parameters

    def losses(batch: Any, beta: float = 1.0) -> list[Any]:
        actions = model.action_vectors(batch.action)
        found, _ = model.compute_total_loss(batch.images, actions, batch.done, beta=beta)
        return [found[name] for name in TASKS]

    @torch.no_grad()
    def measure() -> list[float]:
        model.eval()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            rows = [[float(loss) for loss in losses(batch)] for batch in held]
        model.train()
        return [statistics.mean(column) for column in zip(*rows, strict=True)]

    before = measure()
    began = time.process_time()
    for step in range(steps):
        optimizer.zero_grad()
        tasks = losses(batches[step % len(batches)], min(1.0, 5 * step / steps))
        balancer.backward(tasks if alone is None else [tasks[alone]])
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
    seconds = (time.process_time() - began) / steps
    return before, measure(), seconds


def measure(
    shards: Path, recording: str | None, seeds: int, steps: int, keep: Path | None = None
) -> list[Row]:
    """All arms over all seeds."""
    from iwm.data.loader import Loader
    from iwm.data.reader import ShardStore
    from iwm.files import read_json, write_json
    from iwm.objectives.aime import TASKS

    store = ShardStore(shards)
    chosen = (recording,) if recording else None
    names = store.all_actions(chosen)
    improved: dict[str, list[list[float]]] = {arm: [] for arm in ARMS}
    clock: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for seed in range(seeds):

        def some(split: str, count: int, seed: int = seed) -> list[Any]:
            loader = Loader(
                store, split, BATCH, seed, window=WINDOW, recordings=chosen, vocabulary=names
            )
            return [batch for _, batch in zip(range(count), loader.epoch(0), strict=False)]

        batches, held = some("train", steps), some("val", HELD_OUT, 0)

        def trained(
            arm: str, seed: int = seed, batches: list[Any] = batches, held: list[Any] = held
        ) -> tuple[list[float], list[float], float]:
            if keep is None:
                return train(arm, seed, steps, batches, held, names)
            made = keep / f"{store.info.revision[:12]}-{recording}-{steps}-{seed}-{arm}.json"
            if not made.exists():
                keep.mkdir(parents=True, exist_ok=True)
                write_json(made, train(arm, seed, steps, batches, held, names))
            before, after, seconds = read_json(made)
            return before, after, seconds

        best = []
        for task in range(len(TASKS)):
            before, after, _ = trained(str(task))
            best.append(before[task] - after[task])
        for arm in ARMS:
            before, after, seconds = trained(arm)
            gains = zip(before, after, best, strict=True)
            improved[arm].append([(b - a) / most for b, a, most in gains])
            clock[arm].append(seconds)
            shown = "  ".join(f"{value:.3f}" for value in improved[arm][-1])
            print(f"seed {seed} {arm:8} {shown}", flush=True)
    return [Row(arm, improved[arm], statistics.mean(clock[arm])) for arm in ARMS]


def main() -> None:
    """Measure, print the table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shards", type=Path, help="train on these")
    parser.add_argument("--recording", help="of the shards, this one alone")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--keep", type=Path, help="keep what each training came to in this folder")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with tempfile.TemporaryDirectory() as folder:
        shards = options.shards or procedural(Path(folder))
        rows = measure(shards, options.recording, options.seeds, options.steps, options.keep)
    print(
        f"{'':10}{'mean task':>18}{'worst task':>18}{'ELBO':>8}{'Perc.':>8}{'Pred.':>8}{'CPU s':>8}"
    )
    for row in rows:
        means = [statistics.mean(column) for column in zip(*row.improvements, strict=True)]
        mean, worst = row.over_seeds(statistics.mean), row.over_seeds(min)
        print(
            f"{row.arm:10}{mean[0]:10.3f} ± {mean[1]:.3f}{worst[0]:10.3f} ± {worst[1]:.3f}"
            + "".join(f"{value:8.3f}" for value in means)
            + f"{row.seconds:8.2f}"
        )
    if options.json:
        from iwm.files import write_json

        write_json(options.json, [asdict(row) for row in rows])


if __name__ == "__main__":
    main()

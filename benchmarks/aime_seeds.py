"""Is the mixture's margin more than one training's luck? AIME and its twin, over several seeds.

    python -m benchmarks.aime_seeds [--seeds 0 1 2] [--held-out SHARDS] [--keep FOLDER]

Run in the repository root, with shards in artifacts/shards and a profile in params.yaml. For each
seed the stages ``train`` of the trunk, of ``vrnn`` and of ``vrnn-single`` run as the graph runs
them, in a folder of their own, with seeds that are so much higher than the profile's; then both
are measured as the stage ``evaluate vrnn`` does, on its split or on the test split of
``--held-out``, for example of play recorded with another seed. Intervals are over held-out
episodes; the last rows are over seeds.
With ``--keep``, trainings are kept, and a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PHASE = "vrnn"
SHARDS, MODELS = Path("artifacts/shards"), Path("artifacts/models")
FIGURES = {
    "ELBO gain": ("elbo", "gain"),
    "in KL of z": ("elbo", "gain_kl_z"),
    "in recon": ("elbo", "gain_recon"),
    "components": ("effective_components",),
    "open loop": ("open_loop", "gain"),
    "wrong action": ("open_loop", "gain_wrong_action"),
}


def workplace(folder: Path, seed: int, values: dict[str, Any], shards: Path, twin: str) -> None:
    """A folder in which the stages find their parameters, ``seed`` added, and the shards."""
    from iwm.config import write_params

    trained = dict(values["train"])
    for name in stages(values, twin):
        trained[name] = {**trained[name], "seed": trained[name]["seed"] + seed}
    (folder / SHARDS.parent).mkdir(parents=True, exist_ok=True)
    write_params({**values, "train": trained}, folder / "params.yaml")
    if not (folder / SHARDS).exists():
        (folder / SHARDS).symlink_to(shards.resolve(), target_is_directory=True)


def stages(values: dict[str, Any], twin: str) -> list[str]:
    """What is trained, in this order: what both go on from, and both."""
    trunk = values["train"][PHASE]["init_from"]
    return [*([trunk] if trunk else []), PHASE, twin]


def train(folder: Path, phase: str) -> None:
    """The stage, in ``folder``; goes on where it was stopped.

    Raises:
        SystemExit: it failed, and has said why.
    """
    path = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "pipelines.train", phase]
    done = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, check=False)
    if done.returncode:
        raise SystemExit(f"seed in {folder}: training {phase} ended with code {done.returncode}")


def measure(folder: Path, held_out: Path | None) -> dict[str, Any]:
    """The figures of a seed's two models, as the stage measures them."""
    from iwm.config import load_params
    from iwm.data.reader import ShardStore
    from iwm.evaluation import aime
    from iwm.models.registry import load_model

    params = load_params(folder / "params.yaml", environ={})
    config, trained = params.evaluate[PHASE], params.train[PHASE]
    store = ShardStore(held_out or folder / SHARDS)
    model, single = (load_model(folder / MODELS / name) for name in (PHASE, config.vrnn.single))
    windows = aime.held_out_windows(
        store,
        "test" if held_out else config.split,
        window=trained.window,
        recordings=None if held_out else trained.recordings,
        vocabulary=model.vocabulary,
        count=config.vrnn.windows,
        batch_size=config.batch_size,
    )
    figures = aime.measure(
        model,
        single,
        windows,
        horizon=config.vrnn.horizon,
        samples=config.vrnn.kl_samples,
        draws=config.vrnn.draws,
        resamples=config.bootstrap,
        seed=config.seed,
    )
    figures.pop("surprise")
    return figures


def figure(found: dict[str, Any], path: tuple[str, ...]) -> dict[str, float]:
    """One figure of a report."""
    for part in path:
        found = found[part]
    return found


def main() -> None:
    """Train what is not trained yet, measure, print the table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--held-out", type=Path, help="shards; their test split is measured on")
    parser.add_argument("--keep", type=Path, help="keep the trainings in this folder")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from iwm.config import load_params, read_yaml
    from iwm.files import write_json

    values, twin = read_yaml(Path("params.yaml")), load_params().evaluate[PHASE].vrnn.single
    found: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for seed in options.seeds:
            folder = (options.keep or Path(temporary)).resolve() / f"seed-{seed}"
            workplace(folder, seed, values, SHARDS, twin)
            for phase in stages(values, twin):
                train(folder, phase)
            found[seed] = measure(folder, options.held_out)
    print(f"{'':8}" + "".join(f"{name:>24}" for name in FIGURES))
    for seed, figures in found.items():
        row = [figure(figures, path) for path in FIGURES.values()]
        shown = (f"{x['mean']:.3f} [{x['low']:.3f}, {x['high']:.3f}]" for x in row)
        print(f"seed {seed:<3}" + "".join(f"{text:>24}" for text in shown))
    means = {
        name: [figure(figures, path)["mean"] for figures in found.values()]
        for name, path in FIGURES.items()
    }
    for title, reduce in (("mean", statistics.mean), ("lowest", min)):
        print(f"{title:8}" + "".join(f"{reduce(means[name]):>24.3f}" for name in FIGURES))
    if options.json:
        write_json(options.json, {str(seed): figures for seed, figures in found.items()})


if __name__ == "__main__":
    main()

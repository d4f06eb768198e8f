"""Pictures of a variational recurrent world model, for its report page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iwm.data.batch import Batch
from iwm.evaluation.pictures import areas, as_picture, strips
from iwm.models.aime import DPGMMVariationalRecurrentAutoencoder

Array = np.ndarray[Any, Any]


def overlay(frame: Tensor, attention: Tensor, colour: tuple[float, float, float]) -> Array:
    """A frame [3, H, W] in [0, 1] in grey, attention [h, w] as a glow: uint8 [H, W, 3]."""
    size = list(frame.shape[-2:])
    mask = torch.nn.functional.interpolate(attention[None, None], size, mode="bilinear")[0]
    mask = 0.8 * mask / mask.amax().clamp_min(1e-8)
    grey = frame.mean(0, keepdim=True).expand(3, -1, -1)
    tint = torch.tensor(colour, device=frame.device).view(3, 1, 1)
    return as_picture((1 - mask) * 0.8 * grey + mask * tint)


@torch.no_grad()
def draw(
    model: DPGMMVariationalRecurrentAutoencoder,
    batch: Batch,
    folder: Path,
    *,
    horizon: int = 8,
    rows: int = 3,
    columns: int = 8,
    seed: int = 0,
) -> list[Path]:
    """Reconstructions, attention maps, use of components and imagined rollouts.

    Args:
        model: in eval mode.
        batch: held-out windows longer than ``horizon``, of which some are shown.
        folder: where the PNG files go.
        horizon: steps imagined.
        rows: windows shown.
        columns: frames shown of each.
        seed: of the model's draws.

    Returns:
        ``reconstructions.png``, ``attention.png``, ``components.png`` and ``imagined.png``.
    """
    from matplotlib import colormaps

    batch = batch.to(next(model.parameters()).device)
    # Neighbours look alike: windows from the batch's beginning to its end.
    spread = np.unique(np.linspace(0, len(batch.images) - 1, rows).round().astype(int)).tolist()
    images = batch.images[spread]
    actions = model.action_vectors(batch.action, batch.action_vector)[spread]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        outputs = model.forward_sequence(images, actions, batch.done[spread])
    frames, made = outputs["observations"], outputs["reconstructions"]
    rows, length = len(spread), frames.shape[1]
    shown = np.unique(np.linspace(0, length - 1, columns).round().astype(int)).tolist()
    titles = [f"frame {t}" for t in shown]
    paths = [
        folder / f"{n}.png" for n in ("reconstructions", "attention", "components", "imagined")
    ]

    pairs = [x for row in range(rows) for x in (frames[row], made[row])]
    pictures = [[as_picture(x[t]) for t in shown] for x in pairs]
    strips(pictures, titles, paths[0], ["seen", "rebuilt"] * rows)

    maps = outputs["attention_maps"]
    colours = [colormaps["tab10"](slot % 10)[:3] for slot in range(maps.shape[2])]
    glowing = [
        [overlay(frames[0, t], maps[0, t, slot], colour) for t in shown]
        for slot, colour in enumerate(colours)
    ]
    seen = [as_picture(frames[0, t]) for t in shown]
    labels = ["seen", *(f"slot {slot}" for slot in range(len(colours)))]
    strips([seen, *glowing], titles, paths[1], labels)

    use = _responsibilities(outputs).flatten(0, 1)
    title = f"Responsibility of components over {rows} windows of {length} frames"
    marks = [length * row for row in range(1, rows)]
    areas(use.cpu().numpy(), title, paths[2], name="component", marks=marks)

    known = length - horizon
    state = model.observe(images[:, :known], actions[:, : known - 1])
    ahead = actions[:, known - 1 : known - 1 + horizon]
    imagined = model.imagine(state, ahead, "mean").frames
    assert imagined is not None
    blank = np.full((*frames.shape[-2:], 3), 255, np.uint8)
    pictures = []
    for row in range(rows):
        pictures.append([as_picture(x) for x in frames[row, known - 1 :]])
        pictures.append([blank, *(as_picture(x) for x in imagined[row])])
    titles = ["last seen", *(f"+{k}" for k in range(1, horizon + 1))]
    strips(pictures, titles, paths[3], ["true", "imagined"] * rows)
    return paths


def _responsibilities(outputs: dict[str, Any]) -> Tensor:
    """Of the posterior's means, [B, T, K]."""
    from iwm.objectives.elbo import mixture_joint

    parts = (outputs[name] for name in ("z_mean", "log_pi", "mu_k", "logvar_k"))
    return mixture_joint(*parts).softmax(-1)

"""What is measured on one trained model: retrieval, linear probe, fine-tuned predictors."""

from __future__ import annotations

import copy
import multiprocessing
import os
from contextlib import redirect_stderr
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.paper_claims.arms import Arm, Scale, train
from benchmarks.paper_claims.world import Pictures, draw_pictures
from iwm.data.augment import AUG_DIM
from iwm.data.config import AugmentConfig
from iwm.errors import TrainingError
from iwm.evaluation.retrieval import augmentation_retrieval
from iwm.files import read_json, write_json
from iwm.models.iwm import IWM
from iwm.models.predictor import Predictor, normalise
from iwm.objectives.collapse import effective_rank

RESULT_FILE = "measured.json"
PREDICTORS = ("pretrained", "random")
_RETRIEVED_SEED, _LABELLED_SEED, _JUDGED_SEED = 1_000_000, 2_000_000, 3_000_000
_RIDGE = 10.0
_TUNING_BATCH, _TUNING_RATE = 128, 1e-3


def measure(arm: Arm, seed: int, scale: Scale, folder: Path, tuned: bool) -> dict[str, float]:
    """Train one model if that is not done yet, measure it, keep the figures in its folder.

    Args:
        arm: what kind of model.
        seed: which one of its kind.
        scale: size of the experiment.
        folder: of the model.
        tuned: also fine-tune its predictor and a random one.

    Returns:
        ``mrr``, ``mrr_cls_only``, ``mrr_patches``, ``probe``, ``effective_rank`` and, if asked,
        ``tuned_pretrained`` and ``tuned_random``.
    """
    model = train(arm, seed, scale, folder)
    path = folder / RESULT_FILE
    size = {name: value for name, value in asdict(scale).items() if name != "seeds"}
    belongs_to = {
        "model": read_json(folder / "training.json")["identity"],
        "scale": size,
        "tuned": tuned,
    }
    if path.exists() and (kept := read_json(path))["belongs_to"] == belongs_to:
        figures: dict[str, float] = kept["figures"]
        return figures
    figures = retrieval_figures(model, scale)
    labelled = draw_pictures(scale.labelled, _LABELLED_SEED)
    judged = draw_pictures(scale.labelled, _JUDGED_SEED)
    seen, held_out = encode(model, labelled.images), encode(model, judged.images)
    wanted, truth = properties(labelled), properties(judged)
    figures["probe"] = r_squared(ridge(seen[0], wanted, held_out[0]), truth)
    figures["effective_rank"] = float(effective_rank(held_out[0]))
    if tuned:
        for which in PREDICTORS:
            torch.manual_seed(seed)
            predictor = Predictor(model.config)
            if which == "pretrained":
                predictor.load_state_dict(model.predictor.state_dict())
            answer = tune(predictor, seen, wanted, held_out, scale.tuning_epochs, seed)
            figures[f"tuned_{which}"] = r_squared(answer, truth)
    write_json(path, {"belongs_to": belongs_to, "figures": figures})
    return figures


def retrieval_figures(model: IWM, scale: Scale) -> dict[str, float]:
    """Mean reciprocal ranks on unseen pictures; the bank's jitter is the same for all arms."""
    pictures = draw_pictures(scale.images, _RETRIEVED_SEED)
    with redirect_stderr(StringIO()):
        found = augmentation_retrieval(
            model, pictures.images, AugmentConfig(), bank=scale.bank, queries=scale.queries
        )
    modes = {"mrr": "with_patches", "mrr_cls_only": "cls_only", "mrr_patches": "patches"}
    return {name: float(found.reciprocal[mode]["model"].mean()) for name, mode in modes.items()}


def encode(model: IWM, images: Tensor, batch_size: int = 256) -> tuple[Tensor, Tensor]:
    """The frozen encoder's z_cls [N, D] and z_patches [N, P, D]."""
    parts = [model.encode(chunk) for chunk in torch.split(images, batch_size)]
    return torch.cat([cls for cls, _ in parts]), torch.cat([patches for _, patches in parts])


def properties(pictures: Pictures) -> Tensor:
    """What is to be read from a picture [N, 3]: the number of sprites, the player's x and y.

    None of them changes when a picture's colours do.
    """
    return torch.cat([pictures.count.float().unsqueeze(1) / 2, pictures.player], dim=1)


def r_squared(answer: Tensor, truth: Tensor) -> float:
    """Share of the truth's variance that is explained, mean over the properties."""
    explained = 1 - (answer - truth).square().mean(0) / truth.var(0, correction=0)
    return float(explained.mean())


def ridge(features: Tensor, wanted: Tensor, others: Tensor) -> Tensor:
    """Answers [M, K] for ``others`` [M, D] of the ridge regression ``features`` -> ``wanted``."""
    mean, spread = features.mean(0), features.std(0).clamp_min(1e-6)
    x, y = ((part - mean).double() / spread for part in (features, others))
    centre = wanted.mean(0).double()
    gram = x.T @ x + _RIDGE * torch.eye(x.shape[1], dtype=x.dtype)
    answers: Tensor = y @ torch.linalg.solve(gram, x.T @ (wanted - centre)) + centre
    return answers.float()


def tune(
    predictor: Predictor,
    seen: tuple[Tensor, Tensor],
    wanted: Tensor,
    held_out: tuple[Tensor, Tensor],
    epochs: int,
    seed: int,
    aug_dim: int = AUG_DIM,
) -> Tensor:
    """Fine-tune a predictor and a linear head on frozen latents (section 5 of the paper).

    The predictor is told the null action; the head reads its predicted CLS and the mean of its
    predicted patches.

    Returns:
        Answers for ``held_out``, [M, K].
    """
    predictor = copy.deepcopy(predictor).train()
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(2 * seen[0].shape[1], wanted.shape[1])
    nn.init.zeros_(head.weight)
    with torch.no_grad():
        head.bias.copy_(wanted.mean(0))

    def answer(cls: Tensor, patches: Tensor) -> Tensor:
        predicted, inpainted, _ = predictor(cls, cls.new_zeros(len(cls), aug_dim), patches)
        features = torch.cat([normalise(predicted), normalise(inpainted).mean(1)], dim=1)
        answers: Tensor = head(features)
        return answers

    # The error head has no part in this.
    tuned = [p for name, p in predictor.named_parameters() if not name.startswith("error_head")]
    optimizer = torch.optim.AdamW([*tuned, *head.parameters()], lr=_TUNING_RATE)
    steps = epochs * -(-len(wanted) // _TUNING_BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        order = torch.randperm(len(wanted), generator=generator)
        for rows in torch.split(order, _TUNING_BATCH):
            loss = F.mse_loss(answer(seen[0][rows], seen[1][rows]), wanted[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    predictor.eval()
    with torch.no_grad():
        chunks = zip(*(torch.split(part, 256) for part in held_out), strict=True)
        return torch.cat([answer(cls, patches) for cls, patches in chunks])


def worker(arguments: dict[str, Any]) -> dict[str, float]:
    """:func:`measure` in a process of its own, on one thread."""
    torch.set_num_threads(1)
    try:
        return measure(**arguments)
    except TrainingError:
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            os._exit(1)  # stopped because the parent was killed: there is no more to do
        raise

"""The three tasks of AIME from one forward pass: ELBO, Perceiver, Predictive."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from iwm.objectives.attention import attention_kl, displacement_loss, slot_diversity
from iwm.objectives.elbo import (
    entropy,
    gamma_kl,
    gamma_moments,
    gram_loss,
    mixture_kl,
    reconstruction,
    stick_kl,
)
from iwm.objectives.gather import Part

TASKS = ("total_elbo", "perceiver_loss", "total_predictive")


def elbo_terms(outputs: dict[str, Any], samples: int = 10) -> dict[str, Tensor]:
    """What the bound is made of, for every frame: each [B, T], in nats, lower is better.

    ``recon`` is up to the constant that :func:`iwm.objectives.elbo.reconstruction` leaves out.
    Beside them ``responsibilities`` [B, T, K].

    Args:
        outputs: of ``forward_sequence``.
        samples: of the Monte Carlo KL, a frame.
    """
    ratios, responsibilities = mixture_kl(
        outputs["z_mean"],
        outputs["z_logvar"],
        outputs["log_pi"],
        outputs["mu_k"],
        outputs["logvar_k"],
        samples,
    )
    kl = ratios.mean(0)
    terms = {
        "recon": reconstruction(
            outputs["reconstructions"], outputs["observations"], outputs["sigma"]
        ),
        "kl_z": kl,
        "kl_sticks": torch.zeros_like(kl),
        "kl_alpha": torch.zeros_like(kl),
        "responsibilities": responsibilities,
    }
    if outputs["stick_a"].shape[-1]:  # a single component has no sticks
        shape, rate = outputs["alpha_shape"], outputs["alpha_rate"]
        alpha, log_alpha = gamma_moments(shape, rate)
        sticks = stick_kl(
            outputs["stick_a"], outputs["stick_b"], alpha.unsqueeze(-1), log_alpha.unsqueeze(-1)
        )
        terms["kl_sticks"] = sticks.sum(-1)
        terms["kl_alpha"] = gamma_kl(
            shape, rate, outputs["alpha_shape0"], outputs["alpha_rate0"]
        ).expand_as(kl)
    return terms


class LossAggregator:
    """Losses of the outputs of ``forward_sequence``.

    Args:
        kl_samples: of the Monte Carlo KL of the latents, a frame.
        commitment: weight of the quantiser's commitment.
    """

    def __init__(self, kl_samples: int = 10, commitment: float = 0.25) -> None:
        self.kl_samples, self.commitment = kl_samples, commitment

    def compute_losses(
        self,
        outputs: dict[str, Any],
        beta: float = 1.0,
        lambda_recon: float = 1.0,
        lambda_att_dyn: float = 0.1,
        lambda_gram: float = 0.05,
        entropy_weight: float = 0.1,
        lambda_open_loop: float = 1.0,
        part: Part | None = None,
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """All terms, and the losses of the tasks.

        Args:
            outputs: of ``forward_sequence``.
            beta: weight of the KL terms of the ELBO and of the attention.
            lambda_recon: weight of the reconstruction.
            lambda_att_dyn: weight of the predicted displacement of attention.
            lambda_gram: weight of the Gram anchoring.
            entropy_weight: reward of using many components over the batch.
            lambda_open_loop: weight of the frames foretold, where ``outputs`` hold such.
            part: rows of a batch that several processes share.

        Returns:
            Every term by name, ``total_elbo``, ``perceiver_loss`` and ``total_predictive`` among
            them, and [ELBO, Perceiver, Predictive], which are these three.
        """
        rows = len(outputs["observations"])
        part = part or Part.whole(rows)
        weight = part.weight(rows, part.total)
        found = elbo_terms(outputs, self.kl_samples)
        # A figure of the whole batch, not a mean over rows: alike in every process.
        used = part.gather(found.pop("responsibilities").mean(1)).mean(0)
        losses = {name: weight * term.mean() for name, term in found.items()}
        losses["entropy"] = entropy(used)
        losses["gram"] = weight * self._gram(outputs)
        losses["total_elbo"] = (
            lambda_recon * losses["recon"]
            + beta * (losses["kl_z"] + losses["kl_sticks"] + losses["kl_alpha"])
            - entropy_weight * losses["entropy"]
            + lambda_gram * losses["gram"]
        )
        perceiver = {name: weight * term for name, term in self._perceiver(outputs).items()}
        losses |= perceiver
        losses["perceiver_loss"] = torch.stack(list(perceiver.values())).sum()
        predictive = {name: weight * term for name, term in self._predictive(outputs).items()}
        losses |= predictive
        losses["total_predictive"] = (
            beta * predictive["attention_kl"]
            + lambda_att_dyn * predictive["attention_dynamics"]
            + predictive["diversity"]
        )
        if "open_loop" in predictive:
            losses["total_predictive"] = (
                losses["total_predictive"] + lambda_open_loop * predictive["open_loop"]
            )
        return losses, [losses[name] for name in TASKS]

    def _gram(self, outputs: dict[str, Any]) -> Tensor:
        if outputs["teacher_features"] is None:  # a released model has no teacher
            return torch.zeros_like(outputs["z_mean"][0, 0, 0])
        return gram_loss(outputs["features"], outputs["teacher_features"])

    def _perceiver(self, outputs: dict[str, Any]) -> dict[str, Tensor]:
        """Reconstruction and next-token cross-entropy, both in nats a token; the others."""
        tokens = outputs["token_features"].shape[-2]
        frames = reconstruction(outputs["token_frames"], outputs["observations"], 1.0)
        following = F.cross_entropy(
            outputs["next_token_logits"].flatten(0, 2),
            outputs["token_ids"][:, 1:].flatten(),
            reduction="none",
        ).view(*outputs["starts"][:, 1:].shape, tokens)
        inside = ~outputs["starts"][:, 1:]
        return {
            "perceiver_recon": frames.mean() / tokens,
            "commitment": self.commitment
            * F.mse_loss(outputs["token_features"], outputs["token_codes"].detach()),
            "next_token": (following.mean(-1) * inside).sum() / inside.sum().clamp_min(1),
            "context": F.mse_loss(outputs["context_predicted"], outputs["context"].detach()),
        }

    def _predictive(self, outputs: dict[str, Any]) -> dict[str, Tensor]:
        found = {
            "attention_kl": attention_kl(
                outputs["log_attention_bottom_up"], outputs["log_attention_predicted"]
            ),
            "attention_dynamics": displacement_loss(
                outputs["displacement"],
                outputs["attention_before"],
                outputs["attention_maps"],
                ~outputs["starts"],
            ),
            "diversity": slot_diversity(outputs["attention_maps"]),
        }
        if "foretold" in outputs:  # in nats a token, as the Perceiver's frames are
            frames, inside = outputs["foretold"]
            true = outputs["observations"][:, -frames.shape[1] :]
            nats = reconstruction(frames, true, 1.0) * inside
            found["open_loop"] = (
                nats.sum() / inside.sum().clamp_min(1) / outputs["token_features"].shape[-2]
            )
        return found

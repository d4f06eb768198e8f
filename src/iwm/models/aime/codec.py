"""Frames to latents and back: the variational encoder and the decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iwm.models.aime.config import AIMEConfig
from iwm.models.aime.prior import full, log_variance


class Features(nn.Module):
    """Frames [F, 3, H, W] to features at an eighth of the size, [F, C, h, w]."""

    def __init__(self, config: AIMEConfig) -> None:
        super().__init__()
        base = config.encoder_config.base_channels
        self.channels = 4 * base
        self.layers = nn.Sequential(
            nn.Conv2d(3, base, 4, 2, 1),
            nn.SiLU(),
            nn.Conv2d(base, 2 * base, 4, 2, 1),
            nn.SiLU(),
            nn.Conv2d(2 * base, 4 * base, 4, 2, 1),
            nn.SiLU(),
        )

    def forward(self, frames: Tensor) -> Tensor:
        """Features of frames in [0, 1]."""
        found: Tensor = self.layers(2 * frames - 1)
        return found


class Encoder(nn.Module):
    """q(z_t | o_t, c_t): c_t holds what was seen before."""

    def __init__(self, config: AIMEConfig) -> None:
        super().__init__()
        self.features = Features(config)
        rows, columns = config.grid
        flat = self.features.channels * rows * columns
        self.flat = nn.Sequential(nn.Linear(flat, 256), nn.LayerNorm(256), nn.SiLU())
        self.head = nn.Sequential(
            nn.Linear(256 + config.perceiver_config.context_dim, 256),
            nn.SiLU(),
            nn.Linear(256, 2 * config.latent_dim),
        )

    def forward(self, frames: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Posterior of frames [F, 3, H, W] in [0, 1], given contexts [F, C].

        Returns:
            Mean and log-variance [F, D], features [F, C', h, w].
        """
        features = self.features(frames)
        joint = torch.cat([self.flat(features.flatten(1)), context], dim=-1)
        mean, raw = full(self.head(joint)).chunk(2, dim=-1)
        return mean, log_variance(raw), features


class Decoder(nn.Module):
    """p(o_t | z_t, attention maps): the mean of the frame."""

    def __init__(self, config: AIMEConfig) -> None:
        super().__init__()
        base, slots = config.decoder_config.base_channels, config.attention_config.num_slots
        rows, columns = config.grid
        self.cells = rows * columns
        self.spread = nn.Sequential(
            nn.Linear(config.latent_dim, 4 * base * self.cells),
            nn.Unflatten(-1, (4 * base, rows, columns)),
        )
        self.layers = nn.Sequential(
            nn.Conv2d(4 * base + slots, 4 * base, 3, padding=1),
            nn.SiLU(),
            nn.ConvTranspose2d(4 * base, 2 * base, 4, 2, 1),
            nn.SiLU(),
            nn.ConvTranspose2d(2 * base, base, 4, 2, 1),
            nn.SiLU(),
            nn.ConvTranspose2d(base, 3, 4, 2, 1),
        )

    def forward(self, z: Tensor, maps: Tensor) -> Tensor:
        """Frames [F, 3, H, W] around [0, 1], from z [F, D] and maps [F, S, h, w].

        Maps are scaled so that even attention is 1.
        """
        inputs = torch.cat([self.spread(z), self.cells * maps], dim=1)
        return 0.5 + 0.5 * full(self.layers(inputs))

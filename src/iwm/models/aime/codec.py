"""Frames to latents and back: the variational encoder and the decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iwm.models.aime.config import AIMEConfig
from iwm.models.aime.prior import full, log_variance

# Root mean square of SiLU over a standard normal, inverted: what keeps a signal's size.
_GAIN = 1.68


# What `log_variance` takes to -3.
_START = -1.27


@torch.no_grad()
def keep_signal(layers: nn.Module) -> None:
    """Start convolutions so that what goes through keeps its size, from first to last.

    Torch's own start shrinks it at every layer, by a hundred over four of them, and the first
    hundreds of steps go into growing it again.
    """
    for layer in layers.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            # Of a transposed convolution's taps, one in stride^2 meets an output pixel.
            apart = layer.stride[0] ** 2 if isinstance(layer, nn.ConvTranspose2d) else 1
            taps = layer.in_channels * layer.kernel_size[0] ** 2 / apart
            layer.weight.normal_(0, _GAIN / taps**0.5)
            if layer.bias is not None:
                layer.bias.zero_()


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
        keep_signal(self.layers)

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
        out = nn.Linear(256, 2 * config.latent_dim)
        joint = 256 + config.perceiver_config.context_dim
        self.head = nn.Sequential(nn.Linear(joint, 256), nn.SiLU(), out)
        with torch.no_grad():
            # A posterior as wide as the prior says nothing that a decoder could learn from.
            out.bias[config.latent_dim :] = _START

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
        out = nn.ConvTranspose2d(base, 3, 4, 2, 1)
        self.layers = nn.Sequential(
            nn.Conv2d(4 * base + slots, 4 * base, 3, padding=1),
            nn.SiLU(),
            nn.ConvTranspose2d(4 * base, 2 * base, 4, 2, 1),
            nn.SiLU(),
            nn.ConvTranspose2d(2 * base, base, 4, 2, 1),
            nn.SiLU(),
            out,
        )
        keep_signal(self.layers)
        with torch.no_grad():
            out.weight.mul_(0.1)  # the first frames are nearly grey

    def forward(self, z: Tensor, maps: Tensor) -> Tensor:
        """Frames [F, 3, H, W] around [0, 1], from z [F, D] and maps [F, S, h, w].

        Maps are scaled so that even attention is 1.
        """
        inputs = torch.cat([self.spread(z), self.cells * maps], dim=1)
        return 0.5 + 0.5 * full(self.layers(inputs))

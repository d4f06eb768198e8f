"""What comes in: observations, actions and episode ends, checked."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from iwm.data.augment import to_float
from iwm.errors import ModelError
from iwm.models.aime.config import AIMEConfig


def action_vectors(config: AIMEConfig, ids: Tensor, continuous: Tensor | None) -> Tensor:
    """Action vectors [..., A]: one-hot of ids [...] (-1: none), then numbers [..., C].

    Raises:
        ModelError: an id outside the vocabulary, or another number of numbers.
    """
    names, numbers = len(config.vocabulary), config.action_dim
    if names and ids.numel() and not -1 <= int(ids.min()) <= int(ids.max()) < names:
        raise ModelError(
            f"actions {int(ids.min())} to {int(ids.max())} are outside the model's vocabulary "
            f"of {names}: {', '.join(config.vocabulary)}"
        )
    one_hot = torch.zeros(*ids.shape, names, device=ids.device)
    if names:
        one_hot = (F.one_hot(ids.clamp_min(0), names) * (ids >= 0).unsqueeze(-1)).float()
    if continuous is None:
        continuous = torch.zeros(*ids.shape, numbers, device=ids.device)
    if continuous.shape[-1] != numbers:
        raise ModelError(
            f"continuous actions have {continuous.shape[-1]} numbers, the model takes {numbers}"
        )
    return torch.cat([one_hot, continuous.float()], dim=-1)


def check_observations(config: AIMEConfig, observations: Tensor) -> None:
    """Refuse what is not [B, T, 3, H, W].

    Raises:
        ModelError: names the shape expected.
    """
    height, width = config.image_size
    shape = list(observations.shape)
    if len(shape) != 5 or shape[2:] != [3, height, width] or not shape[0] or not shape[1]:
        raise ModelError(f"observations are {shape}, expected [B, T, 3, {height}, {width}]")


def check_actions(config: AIMEConfig, actions: Tensor, batch: int, length: int | None) -> None:
    """Refuse what is not [batch, length, A], or not finite; any length above 0 when ``None``.

    Raises:
        ModelError: names the shape expected.
    """
    shape = list(actions.shape)
    expected = [batch, "K" if length is None else length, config.action_width]
    if length is None and len(shape) == 3 and shape[1]:
        length = shape[1]
    if shape != [batch, length, config.action_width]:
        raise ModelError(f"actions are {shape}, expected {expected}".replace("'", ""))
    if not bool(actions.isfinite().all()):
        raise ModelError(f"actions {shape} hold values that are not finite")


def checked(
    config: AIMEConfig, observations: Tensor, actions: Tensor, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Both as floats of the type, and on the device, of ``like``.

    Raises:
        ModelError: another shape than expected, or values that are not finite.
    """
    check_observations(config, observations)
    check_actions(config, actions, *observations.shape[:2])
    if observations.dtype == torch.uint8:
        observations = to_float(observations)
    elif not bool(observations.isfinite().all()):
        raise ModelError(f"observations {list(observations.shape)} hold values that are not finite")
    return observations.to(like), actions.to(like)


def episode_starts(batch: int, length: int, dones: Tensor | None, device: torch.device) -> Tensor:
    """Where episodes begin, bool [B, T]: at the first frame, and after every end.

    Raises:
        ModelError: ``dones`` is not [B, T].
    """
    starts = torch.zeros(batch, length, dtype=torch.bool, device=device)
    starts[:, 0] = True
    if dones is None:
        return starts
    if tuple(dones.shape) != (batch, length):
        raise ModelError(f"dones are {list(dones.shape)}, expected [{batch}, {length}]")
    starts[:, 1:] = dones[:, :-1].bool()
    return starts

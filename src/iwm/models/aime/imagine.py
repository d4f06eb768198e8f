"""What a model in one state imagines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from iwm.errors import ModelError
from iwm.models.aime.prior import How

if TYPE_CHECKING:
    from iwm.models.aime.model import DPGMMVariationalRecurrentAutoencoder


@dataclass(frozen=True)
class State:
    """After frame t, before the action taken there.

    ``hidden`` and ``cell`` [layers, B, H] are those of step t - 1; ``z`` [B, D], ``context``
    [B, C] and ``maps`` [B, S, h, w] those of frame t.
    """

    hidden: Tensor
    cell: Tensor
    z: Tensor
    context: Tensor
    maps: Tensor

    def expand(self, count: int) -> State:
        """A state of one, ``count`` times."""
        return State(
            self.hidden.expand(-1, count, -1).contiguous(),
            self.cell.expand(-1, count, -1).contiguous(),
            *(x.expand(count, *x.shape[1:]) for x in (self.z, self.context, self.maps)),
        )


@dataclass(frozen=True)
class Imagined:
    """K steps from a state: ``z`` [B, K, D], ``h`` [B, K, H] (of the step that led there),
    ``log_pi`` [B, K, components], ``attention_maps`` [B, K, S, h, w], and ``frames``
    [B, K, 3, H, W] in [0, 1], or ``None`` when they were not asked for; ``state`` is the last.
    """

    z: Tensor
    h: Tensor
    log_pi: Tensor
    attention_maps: Tensor
    frames: Tensor | None
    state: State


def unroll(
    model: DPGMMVariationalRecurrentAutoencoder, state: State, actions: Tensor, how: How
) -> Imagined:
    """Step the prior from a state through actions [B, K, A]; no frames are decoded.

    ``mean`` keeps the gradient.
    """
    cell, z, context, maps = (state.hidden, state.cell), state.z, state.context, state.maps
    steps = []
    for action in actions.to(z).unbind(1):
        hidden, cell = model.recurrence.step(torch.cat([z, context, action], dim=-1), cell)
        mixture = model.prior(hidden, context, how)
        maps = model.attention.step(maps, hidden, z)
        z = mixture.centre() if how == "mean" else mixture.draw(how)
        context = model.recurrence.next_context(hidden, context, z)
        steps.append((z, hidden, mixture.log_pi, maps))
    latents, hiddens, log_pi, attention = (torch.stack(x, dim=1) for x in zip(*steps, strict=True))
    return Imagined(latents, hiddens, log_pi, attention, None, State(*cell, z, context, maps))


def foretold(
    model: DPGMMVariationalRecurrentAutoencoder,
    outputs: dict[str, Any],
    actions: Tensor,
    horizon: int,
) -> tuple[Tensor, Tensor]:
    """The last ``horizon`` frames of sequences as the prior foretells them, with the gradient.

    Args:
        model: whose sequences these are.
        outputs: of its ``forward_sequence``.
        actions: [B, T, A].
        horizon: less than T.

    Returns:
        Frames [B, horizon, 3, H, W], and bool [B, horizon]: True up to an episode's end.

    Raises:
        ModelError: sequences too short.
    """
    starts = outputs["starts"]
    last = starts.shape[1] - horizon - 1
    if last < 0:
        raise ModelError(
            f"sequences of {starts.shape[1]} frames are too short to foretell {horizon}; "
            f"expected at least {horizon + 1}"
        )
    z, context, maps = outputs["z_mean"], outputs["context"], outputs["attention_maps"]
    cell = model.recurrence.start(len(z))
    if last:
        inputs = torch.cat([z.to(context.dtype), context, actions.to(context)], dim=-1)
        cell = model.recurrence(inputs[:, :last], starts[:, :last])[2]
    state = State(*cell, z[:, last], context[:, last], maps[:, last])
    found = unroll(model, state, actions[:, last : last + horizon], "mean")
    frames = model.decoder(found.z.flatten(0, 1), found.attention_maps.flatten(0, 1))
    inside = starts[:, last + 1 :].cumsum(1) == 0
    return frames.unflatten(0, inside.shape), inside

"""What a model in one state imagines."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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

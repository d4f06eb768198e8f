"""Dreams: frame after frame from a model's own predictions, in real time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from iwm.errors import ModelError

if TYPE_CHECKING:
    from iwm.models.vqvae.dynamics import Past, TokenDynamics


class Dream:
    """One dream, B rows side by side. Made by :meth:`TokenDynamics.start`.

    A step costs one frame's work, however long the dream: of earlier frames the keys and
    values are kept.
    """

    def __init__(
        self,
        model: TokenDynamics,
        vectors: Tensor,
        past: Past | None,
        generator: torch.Generator,
        temperature: float,
    ) -> None:
        self._model, self._past = model, past
        self._generator, self._temperature = generator, temperature
        self.vectors = vectors
        """Code vectors of the present frame, [B, d, h, w]."""
        self.tokens: Tensor | None = None
        """The likeliest or drawn tokens of the present frame, int64 [B, h, w]; ``None`` before
        the first step."""

    @torch.no_grad()
    def step(self, actions: Tensor) -> Tensor:
        """The frame uint8 [B, H, W, 3] that follows the present one under ``actions`` int64 [B].

        Raises:
            ModelError: another number of actions than rows, or unknown ones.
        """
        model = self._model
        if tuple(actions.shape) != (len(self.vectors),):
            raise ModelError(
                f"actions have shape {list(actions.shape)}, the dream has {len(self.vectors)} rows"
            )
        asked = model.known(actions).unsqueeze(1)
        features, self._past = model.features(self.vectors.unsqueeze(1), asked, self._past)
        self.vectors, self.tokens = choose(
            model, model.tell(features), self._generator, self._temperature
        )
        return model.tokenizer.render(self.vectors)


def choose(
    model: TokenDynamics, logits: Tensor, generator: torch.Generator, temperature: float
) -> tuple[Tensor, Tensor]:
    """What a frame becomes: code vectors [B, d, h, w] and tokens [B, h, w].

    Args:
        model: whose tokens they are.
        logits: [B, h, w, sum(digits)].
        generator: draws, when ``temperature`` is above 0.
        temperature: 0 takes the expected vectors.
    """
    if temperature == 0:
        return model.expected(logits), model.likeliest(logits)
    drawn = []
    for part in model.digits(logits):
        shares = (part.float() / temperature).softmax(-1).flatten(0, -2)
        chosen = torch.multinomial(shares, 1, generator=generator)
        drawn.append(chosen.view(part.shape[:-1]))
    tokens = model.tokenizer.quantiser.join(torch.stack(drawn, -1))
    return model.tokenizer.vectors(tokens), tokens


@torch.no_grad()
def dream_uncached(
    model: TokenDynamics, frames: Tensor, past_actions: Tensor, actions: Tensor
) -> Tensor:
    """What :meth:`TokenDynamics.dream` gives, the slow way: for comparison alone.

    One token at a time, in raster order, each from a pass over the whole history: how a
    transformer decodes that keeps nothing and tells one token a pass.

    Args:
        model: the dynamics.
        frames: uint8 [B, T, H, W, 3].
        past_actions: int64 [B, T - 1].
        actions: int64 [B, K].

    Returns:
        uint8 [B, K, H, W, 3].
    """
    vectors = model.tokenizer.vectors(model.tokenizer.encode(frames.flatten(0, 1)))
    vectors = vectors.reshape(*frames.shape[:2], *vectors.shape[1:])
    known, pictures = model.known(past_actions), []
    for action in actions.unbind(1):
        known = torch.cat([known, model.known(action).unsqueeze(1)], dim=1)
        following = torch.empty_like(vectors[:, -1])
        rows, columns = model.tokenizer.grid
        for row in range(rows):
            for column in range(columns):
                told = model.expected(model.logits(vectors, known)[:, -1])
                following[:, :, row, column] = told[:, :, row, column]
        vectors = torch.cat([vectors, following.unsqueeze(1)], dim=1)
        pictures.append(model.tokenizer.render(following))
    return torch.stack(pictures, 1)

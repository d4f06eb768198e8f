"""Dreams: frame after frame from a model's own predictions, in real time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from iwm.errors import ModelError
from iwm.models.vqvae.move import Moved, carry

if TYPE_CHECKING:
    from iwm.models.vqvae.dynamics import TokenDynamics
    from iwm.models.vqvae.transformer import Past

LIVELY = 0.5
"""The temperature of dreams that are played in."""
GUIDANCE = 1.5
"""How far drawn dreams go from what would come under an unknown action towards what the action
leads to; 1 is just there."""


class Dream:
    """One dream, B rows side by side. Made by :meth:`TokenDynamics.start`.

    A step costs one frame's work, however long the dream: of earlier frames the keys and
    values are kept. What the tokens could not say of the last real frame, its *remainder*, is
    carried along by the same movement that carries the tokens, and is left behind where the
    picture becomes another: so what stands still stays as sharp as it was seen.

    At temperature 0 every token becomes its expected vector: the nearest in the mean, but what is
    in doubt fades, and after some steps nothing is left that could be seen to move. Above 0 tokens
    are drawn, where each comes from is chosen at the same temperature, and what the action changes
    is overstated (classifier-free guidance, arXiv 2207.12598, against what would come if the
    action were not known): pictures stay pictures, and do what they are told.

    Args:
        model: the dynamics.
        frame: the last real frame, uint8 [B, H, W, 3].
        vectors: its code vectors [B, d, h, w].
        past: of the frames before it.
        generator: draws, when ``temperature`` is above 0.
        temperature: see above.
    """

    def __init__(
        self,
        model: TokenDynamics,
        frame: Tensor,
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
        self._remainder = model.tokenizer.pixels(frame) - model.tokenizer.draw(vectors)

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
        logits, moved = self._guided(asked) if self._temperature else self._plain(asked)
        self.vectors, self.tokens = choose(model, logits, self._generator, self._temperature)
        self._remainder = carry_remainder(model, self._remainder, moved, self.vectors)
        return model.tokenizer.render(self.vectors, self._remainder)

    def _plain(self, asked: Tensor) -> tuple[Tensor, Moved]:
        """Logits of the next frame and what it copies, under rows of the action table [B, 1]."""
        model = self._model
        features, self._past = model.features(self.vectors.unsqueeze(1), asked, self._past)
        return model.tell(features, self.vectors)

    def _guided(self, asked: Tensor) -> tuple[Tensor, Moved]:
        """The same, away from what comes under an unknown action: both are told side by side."""
        model, rows = self._model, len(asked)
        both = torch.cat([asked, torch.full_like(asked, len(model.vocabulary))])
        present = self.vectors.repeat(2, 1, 1, 1)
        past = None if self._past is None else self._past.twice()
        features, past = model.features(present.unsqueeze(1), both, past)
        self._past = past.first(rows)
        choices = torch.cat(_lead(model.move.choose(features))) / self._temperature
        logits, moved = model.tell(features, present, choices)
        return _lead(logits)[0], moved.first(rows)


def _lead(told: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [2 * B, ...] of what was asked and of the unknown -> guided ones, and the latter."""
    asked, unknown = told.chunk(2)
    return unknown + GUIDANCE * (asked - unknown), unknown


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


def carry_remainder(
    model: TokenDynamics, remainder: Tensor, moved: Moved, vectors: Tensor
) -> Tensor:
    """A remainder [B, 3, H, W] moved as the tokens were, less where they became others.

    Args:
        model: the dynamics.
        remainder: of the frame before.
        moved: how its tokens moved.
        vectors: code vectors [B, d, h, w] of the frame after.
    """
    patch = model.tokenizer.config.patch
    carried = carry(F.pixel_unshuffle(remainder, patch), moved.shares, model.move.reach)
    apart = model.tokenizer.quantiser.apart(
        vectors.permute(0, 2, 3, 1), moved.copied.permute(0, 2, 3, 1)
    )
    return F.pixel_shuffle(carried * (-apart).exp().unsqueeze(1), patch)


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
    tokenizer = model.tokenizer
    vectors = tokenizer.vectors(tokenizer.encode(frames.flatten(0, 1)))
    vectors = vectors.reshape(*frames.shape[:2], *vectors.shape[1:])
    remainder = tokenizer.pixels(frames[:, -1]) - tokenizer.draw(vectors[:, -1])
    known, pictures = model.known(past_actions), []
    for action in actions.unbind(1):
        known = torch.cat([known, model.known(action).unsqueeze(1)], dim=1)
        present, following = vectors[:, -1], torch.empty_like(vectors[:, -1])
        for row in range(tokenizer.grid[0]):
            for column in range(tokenizer.grid[1]):
                features = model.features(vectors, known)[0]
                last = features.view(*vectors.shape[:2], *features.shape[1:])[:, -1]
                logits, moved = model.tell(last, present)
                following[:, :, row, column] = model.expected(logits)[:, :, row, column]
        remainder = carry_remainder(model, remainder, moved, following)
        vectors = torch.cat([vectors, following.unsqueeze(1)], dim=1)
        pictures.append(tokenizer.render(following, remainder))
    return torch.stack(pictures, 1)

"""Token dynamics: the next frame's tokens from earlier frames' and the actions between them.

All tokens of the next frame are told in one pass, each digit of each by itself given the past
(:mod:`iwm.models.vqvae.quantiser`): the worlds meant here are near enough to certain that the
mean over what may happen is the best picture, and a dream costs one pass a frame. What comes
in are code vectors, so that a dream may be fed the *expected* vector of each token, which keeps
what a single token would throw away; or tokens drawn at a temperature.

Frame *t* enters with the action taken there and leads to frame *t + 1*. Convolutions at single
tokens fold a frame, and what was new in it since the frame before, into the transformer's
positions, and unfold its answer beside the frame itself. From it each token says where in the
present frame its vector comes from (:class:`iwm.models.vqvae.move.Move`), so untrained
dynamics copy the present frame, and what moves is learned as movement.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iwm.errors import ModelError
from iwm.models.encoder import load_state
from iwm.models.saving import WEIGHTS_FILE, read_config, read_weights, save_model
from iwm.models.vqvae.autoencoder import VQVAE
from iwm.models.vqvae.config import TokenDynamicsConfig
from iwm.models.vqvae.dream import Dream
from iwm.models.vqvae.layers import Residual
from iwm.models.vqvae.move import Move, Moved, settle
from iwm.models.vqvae.transformer import Block, Pair, Past, SpaceBlock, TimeBlock
from iwm.objectives.gather import Part
from iwm.settings import parse, to_dict

NAME = "vqvae-dynamics"
TOKENIZER = "tokenizer"
"""Subfolder of a released model that holds its tokenizer."""


class Windows(Protocol):
    """What a batch must hold: ``images`` uint8 [B, T, 3, H, W], ``action`` int64 [B, T] in the
    model's vocabulary (-1: none).
    """

    images: Tensor
    action: Tensor


class TokenDynamics(nn.Module):
    """A frozen tokenizer, and the transformer that dreams in its tokens.

    Args:
        config: shapes and vocabulary.
    """

    def __init__(self, config: TokenDynamicsConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = VQVAE(config.tokenizer).requires_grad_(False).eval()
        c, quantiser = config, config.tokenizer.quantiser
        rows, columns = c.blocks_grid
        self.fold = nn.Conv2d(2 * quantiser.width, c.detail, 3, padding=1)
        self.mix = Residual(c.detail, 8)
        self.embed = nn.Conv2d(c.detail, c.width, c.group, stride=c.group)
        self.position = nn.Parameter(0.02 * torch.randn(1, 1, rows * columns, c.width))
        # One for "not known" behind the actions. Large: actions must be noticed.
        self.action_token = nn.Parameter(torch.randn(len(c.vocabulary) + 1, c.width))
        self.embed_action = nn.Sequential(
            nn.Linear(c.width, c.width),
            nn.SiLU(),
            nn.Linear(c.width, c.width),
            nn.LayerNorm(c.width),
        )
        shape = (c.width, c.heads, c.mlp_ratio, c.dropout)
        self.layers = nn.ModuleList(
            TimeBlock(*shape, c.context) if place % 2 else SpaceBlock(*shape, c.blocks_grid)
            for place in range(c.depth)
        )
        self.norm = nn.LayerNorm(c.width)
        self.unfold = nn.Linear(c.width, c.detail * c.group**2)
        self.shuffle = nn.PixelShuffle(c.group)
        self.move = Move(quantiser, c.detail, c.reach)
        self.finish = Residual(c.detail, 8)
        self.head = nn.Conv2d(c.detail, sum(quantiser.digits), 1)
        nn.init.zeros_(self.head.weight)
        self._draw: tuple[torch.Generator, Part | None] = (torch.default_generator, None)
        self._statistics = True
        self.register_buffer("progress", torch.zeros(()))

    progress: Tensor

    def train(self, mode: bool = True) -> Self:
        """Training mode; the tokenizer stays as it is."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    # -- what a released model does ----------------------------------------------------

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Names of the actions."""
        return self.config.vocabulary

    @property
    def context(self) -> int:
        """Frames that a prediction looks back on, the present one included."""
        return self.config.context

    @torch.no_grad()
    def start(
        self, frames: Tensor, actions: Tensor, *, seed: int = 0, temperature: float = 0.0
    ) -> Dream:
        """A dream that goes on from real frames.

        Args:
            frames: uint8 [B, T, H, W, 3], T >= 1.
            actions: int64 [B, T - 1]; ``actions[:, t]`` led from frame t to t + 1; -1: not known.
            seed: of what is drawn.
            temperature: 0: each token's expected vector; above: drawn, see :class:`Dream`.

        Raises:
            ModelError: shapes that do not fit, unknown actions, a temperature below 0.
        """
        if frames.ndim != 5 or frames.shape[1] < 1:
            raise ModelError(
                f"frames have shape {list(frames.shape)}, a dream starts from [B, T, H, W, 3]"
            )
        batch, length = frames.shape[:2]
        if tuple(actions.shape) != (batch, length - 1):
            raise ModelError(
                f"actions have shape {list(actions.shape)}, {length} frames have "
                f"[{batch}, {length - 1}] between them"
            )
        if not temperature >= 0:
            raise ModelError(f"temperature {temperature} is below 0")
        tokens = self.tokenizer.encode(frames.flatten(0, 1))
        vectors = _windows(self.tokenizer.vectors(tokens), batch)
        past = None
        if length > 1:
            past = self.features(vectors[:, :-1], self.known(actions))[1]
        generator = torch.Generator(device=frames.device).manual_seed(seed)
        return Dream(self, frames[:, -1], vectors[:, -1], past, generator, temperature)

    @torch.no_grad()
    def dream(
        self,
        frames: Tensor,
        past_actions: Tensor,
        actions: Tensor,
        *,
        seed: int = 0,
        temperature: float = 0.0,
    ) -> Tensor:
        """Frames uint8 [B, K, H, W, 3] after ``frames`` under ``actions`` int64 [B, K].

        Raises:
            ModelError: see :meth:`start`.
        """
        dream = self.start(frames, past_actions, seed=seed, temperature=temperature)
        return torch.stack([dream.step(action) for action in actions.unbind(1)], 1)

    @torch.no_grad()
    def next_tokens(self, tokens: Tensor, actions: Tensor) -> Tensor:
        """The likeliest tokens of the frames after each of [B, T, h, w], int64 of that shape.

        Args:
            tokens: of successive frames.
            actions: int64 [B, T], taken after each.
        """
        vectors = _windows(self.tokenizer.vectors(tokens.flatten(0, 1)), len(tokens))
        logits = self.logits(vectors, self.known(actions))
        return self.likeliest(logits)

    def known(self, actions: Tensor) -> Tensor:
        """Rows of the action table, for positions in the vocabulary; -1 is "not known".

        Raises:
            ModelError: a position outside the vocabulary.
        """
        names = len(self.vocabulary)
        if actions.numel() and not -1 <= int(actions.min()) <= int(actions.max()) < max(names, 1):
            raise ModelError(
                f"actions {int(actions.min())} to {int(actions.max())} are outside the model's "
                f"vocabulary of {names}: {', '.join(self.vocabulary)}"
            )
        return torch.where(actions < 0, names, actions.clamp_max(names))

    # -- the transformer ---------------------------------------------------------------

    def features(
        self, vectors: Tensor, actions: Tensor, past: Past | None = None
    ) -> tuple[Tensor, Past]:
        """What is known after each frame and its action.

        Args:
            vectors: code vectors [B, T, d, h, w].
            actions: rows of the action table, int64 [B, T].
            past: of the frames before these.

        Returns:
            Features [B * T, detail, h, w], and what to keep, as much of it as a later frame can
            attend to.
        """
        batch, length = vectors.shape[:2]
        first = vectors[:, :1] if past is None else past.before.unsqueeze(1)
        before = torch.cat([first, vectors[:, :-1]], dim=1)
        both = torch.cat([vectors, vectors - before], dim=2).flatten(0, 1)
        both = both.contiguous(memory_format=torch.channels_last)
        detail = self.mix(self.fold(both))
        x = _windows(self.embed(detail).flatten(2).transpose(1, 2), batch)
        x = x + self.position
        condition = self.embed_action(self.action_token[actions]).unsqueeze(2)
        pairs = []
        for place, block in enumerate(self.layers):
            x, pair = block(x, condition, None if past is None else past.pairs[place])
            pairs.append(self._recent(pair))
        rows, columns = self.config.blocks_grid
        x = self.unfold(self.norm(x)).flatten(0, 1).transpose(1, 2)
        x = self.shuffle(x.reshape(batch * length, -1, rows, columns))
        x = x.contiguous(memory_format=torch.channels_last)
        return detail + x, Past(vectors[:, -1], tuple(pairs))

    def _recent(self, pair: Pair) -> Pair:
        if pair[0].ndim < 5:
            return pair
        begin = max(0, pair[0].shape[3] - self.config.context + 1)
        return pair[0][:, :, :, begin:], pair[1][:, :, :, begin:]

    def tell(
        self, features: Tensor, present: Tensor, choices: Tensor | None = None
    ) -> tuple[Tensor, Moved]:
        """What features [M, detail, h, w] lead to from frames ``present`` [M, d, h, w].

        Returns:
            Logits [M, h, w, sum(digits)], and what they copied (by ``choices``, if given).
        """
        moved = self.move(features, present, self.tokenizer.quantiser, choices)
        told = self.head(F.silu(self.finish(moved.features))).permute(0, 2, 3, 1)
        return told + moved.logits, moved

    def logits(self, vectors: Tensor, actions: Tensor) -> Tensor:
        """Logits [B, T, h, w, sum(digits)] of the frames after each of ``vectors``.

        Args:
            vectors: code vectors [B, T, d, h, w].
            actions: rows of the action table, int64 [B, T].
        """
        told = self.tell(self.features(vectors, actions)[0], vectors.flatten(0, 1))[0]
        return _windows(told, len(vectors))

    def digits(self, logits: Tensor) -> list[Tensor]:
        """Logits of each digit's values, from [..., sum(digits)]."""
        return list(torch.split(logits, list(self.tokenizer.quantiser.digits), dim=-1))

    def likeliest(self, logits: Tensor) -> Tensor:
        """Tokens int64 [...] of logits [..., sum(digits)]."""
        best = torch.stack([part.argmax(-1) for part in self.digits(logits)], -1)
        return self.tokenizer.quantiser.join(best)

    def expected(self, logits: Tensor) -> Tensor:
        """Code vectors [..., d, h, w] that logits [..., h, w, sum(digits)] lead to; see
        :func:`iwm.models.vqvae.move.settle`.
        """
        shares = [settle(part.float().softmax(-1), -1) for part in self.digits(logits)]
        return self.tokenizer.quantiser.expected(shares).movedim(-1, -3)

    # -- training ----------------------------------------------------------------------

    def before_step(self, seed: int, part: Part | None = None, *, statistics: bool = True) -> None:
        """Fix the step's randomness, drawn for the global batch.

        Args:
            seed: of the step, the same in every process.
            part: the rows of the global batch that come next; ``None``: all of them.
            statistics: whether the step's logs hold the figures beside the loss.
        """
        self._draw = (torch.Generator().manual_seed(seed), part)
        self._statistics = statistics

    def after_step(self, progress: float) -> None:
        """The share of own predictions grows with ``progress``, the share of training done."""
        self.progress.fill_(progress)

    def blocks(self) -> list[nn.Module]:
        """The repeated parts, each of which is compiled, and sharded, as a unit."""
        return [block for block in self.layers if isinstance(block, Block)]

    def forward(self, batch: Windows) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and logs of windows [B, T]: the next frames' digits, from frames real or told.

        Raises:
            ModelError: windows of fewer than two frames.
        """
        rows, length = batch.images.shape[:2]
        if length < 2:
            raise ModelError("training token dynamics needs windows of at least two frames")
        generator, part = self._draw[0], self._draw[1] or Part.whole(rows)
        share = part.weight(rows, part.total)
        with torch.no_grad():
            pictures = batch.images.flatten(0, 1).permute(0, 2, 3, 1)
            tokens = self.tokenizer.encode(pictures)
            vectors = _windows(self.tokenizer.vectors(tokens), rows)
            tokens = _windows(tokens, rows)
        actions = self.known(batch.action[:, :-1])
        hidden = torch.rand(part.total, generator=generator)[part.rows].to(actions.device)
        unknown = (hidden < self.config.action_dropout)[:, None]
        actions = torch.where(unknown, len(self.vocabulary), actions)
        seen = self._own(vectors[:, :-1], actions, part, generator)
        logits = self.logits(seen, actions)
        goal = self.tokenizer.quantiser.split(tokens[:, 1:])
        losses = [
            F.cross_entropy(told.flatten(0, -2).float(), true.flatten())
            for told, true in zip(self.digits(logits), goal.unbind(-1), strict=True)
        ]
        loss = torch.stack(losses).sum()
        logs = {"loss_tokens": share * loss.detach()}
        if self._statistics:
            right = self.likeliest(logits.detach()) == tokens[:, 1:]
            logs["token_accuracy"] = share * right.float().mean()
            logs["copy_accuracy"] = share * (tokens[:, 1:] == tokens[:, :-1]).float().mean()
        return share * loss, logs

    def _own(
        self, vectors: Tensor, actions: Tensor, part: Part, generator: torch.Generator
    ) -> Tensor:
        """Input frames [B, T, d, h, w], some replaced by what the model tells of them."""
        chance = 2 * self.config.own_share * min(1.0, 2 * float(self.progress))
        drawn = torch.rand(part.total, vectors.shape[1], generator=generator)[part.rows]
        # In every other step only, and there twice as many: telling them costs a third pass.
        if vectors.shape[1] < 2 or float(torch.rand((), generator=generator)) < 0.5:
            return vectors
        own = (drawn < chance).to(vectors.device)
        own[:, 0] = False
        with torch.no_grad():
            told = self.expected(self.logits(vectors[:, :-1], actions[:, :-1]))
        told = torch.cat([vectors[:, :1], told.to(vectors.dtype)], dim=1)
        return torch.where(own[:, :, None, None, None], told, vectors)

    # -- on disk -----------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the released model, its tokenizer in the subfolder ``tokenizer``."""
        own = {
            name: value
            for name, value in self.state_dict().items()
            if not name.startswith("tokenizer.") and name != "progress"
        }
        self.tokenizer.save_pretrained(Path(folder) / TOKENIZER)
        save_model(Path(folder), NAME, to_dict(self.config), own)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, trainable: bool = False) -> Self:
        """Load a released model with its tokenizer, in eval mode unless it is to be trained.

        Raises:
            ModelError: missing, damaged, newer, of another shape than its config says, or
                beside a tokenizer that it was not trained with.
        """
        folder = Path(folder)
        config = model_config(read_config(folder, NAME)["settings"], str(folder))
        tokenizer = VQVAE.from_pretrained(folder / TOKENIZER)
        check_tokenizer(config, tokenizer, str(folder))
        model = cls(config)
        model.tokenizer.load_state_dict(tokenizer.state_dict())
        own = nn.ModuleDict({n: m for n, m in model.named_children() if n != "tokenizer"})
        own.position, own.action_token = model.position, model.action_token
        load_state(own, read_weights(folder), str(folder / WEIGHTS_FILE))
        return model.train(trainable)


def _windows(frames: Tensor, rows: int) -> Tensor:
    """[B * T, ...] -> [B, T, ...]."""
    return frames.reshape(rows, -1, *frames.shape[1:])


def check_tokenizer(config: TokenDynamicsConfig, tokenizer: VQVAE, where: str) -> None:
    """Refuse a tokenizer whose tokens mean something else.

    Raises:
        ModelError: names what differs.
    """
    mine, other = config.tokenizer, tokenizer.config
    for what, expected, found in (
        ("a codebook of", mine.quantiser.codebook_size, other.quantiser.codebook_size),
        ("digits", list(mine.quantiser.digits), list(other.quantiser.digits)),
        ("a grid of", list(mine.grid), list(other.grid)),
        ("images of", list(mine.image_size), list(other.image_size)),
    ):
        if expected != found:
            raise ModelError(
                f"{where}: the tokenizer has {what} {found}, the dynamics were made for {expected}"
            )


def model_config(settings: dict[str, Any], where: str = "model") -> TokenDynamicsConfig:
    """Typed settings from plain ones.

    Raises:
        ConfigError: one line per wrong key.
    """
    return parse(TokenDynamicsConfig, settings, where)


def create(**settings: Any) -> TokenDynamics:
    """Untrained dynamics from plain settings (the entry in the model registry)."""
    return TokenDynamics(model_config(settings))

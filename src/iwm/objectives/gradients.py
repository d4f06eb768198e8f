"""One step for several tasks: how the gradients of their losses become one.

The balancers see gradients as the rows of a matrix [T, P]; but for one product with the result,
all they do is arithmetic on the T x T matrix of inner products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from iwm.errors import ConfigError

# Cosine beyond which a gradient has no direction left in which to turn towards the common one.
_ALIGNED = 1 - 1e-8


def task_gradients(losses: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> Tensor:
    """Gradients of every loss, one flat row each: [T, P]. The graph is freed by the last."""
    rows = []
    for number, loss in enumerate(losses):
        if not loss.requires_grad:
            rows.append(torch.cat([torch.zeros_like(p).flatten() for p in parameters]))
            continue
        keep = number + 1 < len(losses)
        found = torch.autograd.grad(loss, parameters, retain_graph=keep, allow_unused=True)
        pairs = zip(parameters, found, strict=True)
        rows.append(
            torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs])
        )
    return torch.stack(rows)


def split(flat: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """A flat gradient [P] as views of the parameters' shapes."""
    pieces = torch.split(flat, [p.numel() for p in parameters])
    return [piece.view_as(p) for piece, p in zip(pieces, parameters, strict=True)]


class Balancer(nn.Module):
    """The sum of the gradients, and the interface of all balancers.

    It is that of multi-task libraries: set ``task_num``, ``device``, ``rep_grad`` and
    ``get_share_params``, then call :meth:`backward` with the losses.
    """

    def __init__(self) -> None:
        super().__init__()
        self.task_num: int | None = None
        self.device: torch.device | str | None = None
        self.rep_grad = False
        self.get_share_params: Callable[[], Iterable[nn.Parameter]] | None = None

    def backward(self, losses: Sequence[Tensor]) -> Tensor:
        """Add the balanced gradient to the shared parameters' ``grad``.

        Args:
            losses: one scalar a task.

        Returns:
            The flat gradient [P].

        Raises:
            ConfigError: the number of losses is not ``task_num``, no parameters were named, or
                gradients of a representation are asked for.
        """
        if self.get_share_params is None:
            raise ConfigError("gradient balancing: set get_share_params first")
        if self.task_num not in (None, len(losses)):
            raise ConfigError(
                f"gradient balancing: {len(losses)} losses given, task_num is {self.task_num}"
            )
        if self.rep_grad:
            raise ConfigError("gradient balancing: rep_grad is not supported; parameters only")
        parameters = [p for p in self.get_share_params() if p.requires_grad]
        flat = self.combine(task_gradients(losses, parameters))
        for parameter, gradient in zip(parameters, split(flat, parameters), strict=True):
            if parameter.grad is None:
                parameter.grad = gradient.clone()
            else:
                parameter.grad += gradient
        return flat

    def combine(self, gradients: Tensor) -> Tensor:
        """[T, P] -> [P]."""
        return gradients.sum(0)


class MeanUnit(Balancer):
    """The mean of the unit gradients, at the mean gradient's length.

    The length makes clipping by norm mean what it means for one loss. A task without a gradient
    has no say.
    """

    def combine(self, gradients: Tensor) -> Tensor:
        """[T, P] -> [P]."""
        unit, length, _ = _unit(gradients)
        return unit.mean(0) * length if len(unit) else gradients.sum(0)


class PCGrad(Balancer):
    """Conflicting parts projected away (Yu et al., arXiv 2001.06782); weights by torchjd."""

    def __init__(self) -> None:
        super().__init__()
        try:
            from torchjd.aggregation import PCGradWeighting
        except ImportError:
            raise ConfigError("gradient balancing: pcgrad needs the package torchjd") from None
        self._weighting: Any = PCGradWeighting()

    def combine(self, gradients: Tensor) -> Tensor:
        """[T, P] -> [P]."""
        weights: Tensor = self._weighting(gradients @ gradients.T)
        return weights @ gradients


class RGB(Balancer):
    """Rotation-based gradient balancing (openreview l0QAezg8HX).

    Unit gradients are turned by angles alpha_i towards a running common direction d, so that
    they agree with one another without leaving their own direction by much; the step goes along
    their mean. Unlike the public code, angles are capped where a gradient meets d, and the
    result has the length of the mean gradient instead of at most one.

    Args:
        mu: momentum of the common direction.
        lambd: weight of staying near one's own direction.
        alpha_steps: gradient steps on the angles, which go on from the last call's.
        alpha_lr: their rate.
    """

    direction: Tensor
    alpha: Tensor

    def __init__(
        self,
        mu: float = 0.9,
        lambd: float = 1.0,
        alpha_steps: int = 3,
        alpha_lr: float = 0.2,
    ) -> None:
        super().__init__()
        if not 0 <= mu < 1 or lambd < 0 or alpha_steps < 0 or alpha_lr <= 0:
            raise ConfigError("RGB: mu is in [0, 1), lambd and alpha_steps >= 0, alpha_lr > 0")
        self.mu, self.lambd, self.alpha_steps, self.alpha_lr = mu, lambd, alpha_steps, alpha_lr
        # Both belong to a checkpoint: without them a resumed run would go another way.
        self.register_buffer("direction", torch.zeros(0))
        self.register_buffer("alpha", torch.zeros(0, dtype=torch.float64))

    def size(self, tasks: int, parameters: int) -> RGB:
        """Reserve the state, so that a state_dict of this size can be loaded."""
        self.direction = self.direction.new_zeros(parameters)
        self.alpha = self.alpha.new_zeros(tasks)
        return self

    @torch.no_grad()
    def combine(self, gradients: Tensor) -> Tensor:
        """[T, P] -> [P]; moves the common direction and the angles."""
        if self.direction.shape != gradients.shape[1:] or len(self.alpha) != len(gradients):
            self.to(gradients.device).size(*gradients.shape)
        unit, length, active = _unit(gradients)
        if not len(unit):
            return gradients.sum(0)
        mean = F.normalize(unit.mean(0), dim=0)
        direction = self.direction.to(unit.dtype)
        direction = F.normalize(self.mu * direction + (1 - self.mu) * mean, dim=0)
        self.direction.copy_(direction)
        gram = (unit @ unit.T).double()
        along = (unit @ direction).double().clamp(-1, 1)
        alpha = self.rotate(gram, along, self.alpha[active])
        self.alpha[active] = alpha
        own, common = turned(along, alpha)
        step: Tensor = own.to(unit) @ unit / len(unit) + common.mean().to(unit) * direction
        return step * length

    def rotate(self, gram: Tensor, along: Tensor, start: Tensor) -> Tensor:
        """Angles after ``alpha_steps`` of descent from ``start``.

        Args:
            gram: inner products of the unit gradients, [T, T].
            along: their cosines with the common direction, [T].
            start: angles to go on from, [T].
        """
        cap = torch.where(along.abs() < _ALIGNED, torch.arccos(along), torch.zeros_like(along))
        alpha = torch.minimum(start, cap).clamp_min(0)
        for _ in range(self.alpha_steps):
            with torch.enable_grad():
                alpha = alpha.detach().requires_grad_()
                slope = torch.autograd.grad(rotation_loss(gram, along, alpha, self.lambd), alpha)[0]
            alpha = torch.minimum(alpha.detach() - self.alpha_lr * slope, cap).clamp_min(0)
        return alpha.detach()


def turned(along: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """A and B of r_i = A_i g_i + B_i d, the unit gradient g_i turned by alpha_i towards d.

    Args:
        along: p_i = g_i . d, [T].
        alpha: angles, [T]; must be 0 where g_i and d lie on one line.
    """
    sine = (1 - along.square()).clamp_min(1e-16).sqrt()
    common = torch.sin(alpha) / sine
    return torch.cos(alpha) - common * along, common


def rotation_loss(gram: Tensor, along: Tensor, alpha: Tensor, lambd: float) -> Tensor:
    """Mean pairwise 1 - r_i . r_j, plus lambda / (4 T) times the sum of |r_i - g_i|^2."""
    a, b = turned(along, alpha)
    cross = a[:, None] * b[None, :] * along[:, None]
    products = a[:, None] * a[None, :] * gram + cross + cross.T + b[:, None] * b[None, :]
    count = len(alpha)
    # r_i . g_i = cos alpha_i, whatever d is.
    stray = lambd / (4 * count) * (2 - 2 * torch.cos(alpha)).sum()
    if count == 1:
        return stray
    pairs = ~torch.eye(count, dtype=torch.bool, device=gram.device)
    return (1 - products)[pairs].mean() + stray


def _unit(gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unit gradients of the tasks that have one, their mean length, and which these are."""
    norms = gradients.norm(dim=1)
    active = norms > 0
    unit = gradients[active] / norms[active, None]
    return unit, norms[active].mean(), active


BALANCERS: dict[str, Callable[..., Balancer]] = {
    "sum": Balancer,
    "unit": MeanUnit,
    "pcgrad": PCGrad,
    "rgb": RGB,
}


def balanced_loss(
    losses: Sequence[Tensor],
    parameters: Iterable[nn.Parameter],
    balancer: Balancer,
    world: int = 1,
) -> Tensor:
    """The sum of the losses, whose ``backward`` yields the balanced gradient.

    So a trainer that knows one loss, clips and averages over processes needs no change.

    Args:
        losses: one scalar a task; their graph is used up here.
        parameters: shared by the tasks.
        balancer: combines the gradients.
        world: processes over which gradients are averaged first, so that all balance alike.
    """
    if type(balancer) is Balancer and world == 1:  # one backward pass does
        return torch.stack(list(losses)).sum()
    wanted = [p for p in parameters if p.requires_grad]
    total = torch.stack([loss.detach() for loss in losses]).sum()
    gradients = task_gradients(losses, wanted)
    if world > 1:
        distributed.all_reduce(gradients)
        gradients /= world
    value: Tensor = _Given.apply(total, split(balancer.combine(gradients), wanted), *wanted)
    return value


class _Given(torch.autograd.Function):
    """A value with given gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *_: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(outer * gradient for gradient in ctx.gradients)

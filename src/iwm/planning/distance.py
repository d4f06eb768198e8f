"""Steps between two latents, learned from recorded play.

Latent distance says how alike two states look, not how far apart they are: behind a wall lies
another room. Here recorded play is a graph, as in search on the replay buffer (Eysenbach et al.,
arXiv 1906.05253) and sparse graphical memory (arXiv 2003.06417): a node is a latent, an edge a
step that somebody took, and the distance is the shortest path, which joins pieces of many
episodes. It needs no labels and no rewards, and is fitted in seconds. Steps that nobody took but
that a world model imagines between two remembered latents complete the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from iwm.errors import DataError, ModelError
from iwm.models.saving import read_config, read_weights, save_model
from iwm.planning.config import DistanceConfig
from iwm.settings import parse, to_dict

NAME = "temporal-distance"

Imagine = Callable[[Tensor], Tensor]
"""Latents [N, D] -> what each action would make of them, [N, A, D]."""

_CHUNK = 1024
_LINK_STEPS = 6


@dataclass(frozen=True)
class TemporalDistance:
    """A memory of latents and the steps between them."""

    config: DistanceConfig
    nodes: Tensor
    """[M, D]: remembered latents."""
    steps: Tensor
    """float16 [M, M]: steps from row to column, at most ``max_distance``."""
    unit: float
    """Median change of a latent by one step (Euclidean)."""
    coverage: float
    """Share of the fitted frames whose nodes can all reach each other."""
    link: float
    """How distant look-alikes were linked, in units; 0: none needed."""
    imagined: int
    """Steps between nodes that the world model added to those that somebody took."""

    def to_goal(self, goal: Tensor) -> Callable[[Tensor], Tensor]:
        """The distance to one goal.

        Args:
            goal: [D].

        Returns:
            A function from latents [N, D] to steps [N].

        Raises:
            ModelError: a goal of another width than the remembered latents.
        """
        if goal.numel() != self.nodes.shape[1]:
            raise ModelError(
                f"the temporal distance knows latents of {self.nodes.shape[1]} dimensions, the "
                f"goal has {goal.numel()}"
            )
        nodes = self.nodes.to(goal.device)
        place = torch.cdist(goal.reshape(1, -1).float(), nodes).argmin()
        column = self.steps[:, place].float().to(goal.device)
        count = min(self.config.neighbours, len(nodes))

        def steps(latents: Tensor) -> Tensor:
            """The nearest nodes' steps, weighted by 1/distance^2, and how far the nearest is."""
            away, near = torch.cdist(latents.float(), nodes).topk(count, largest=False)
            away = away / self.unit
            weight = 1 / (away.square() + 1e-6)
            return (column[near] * weight).sum(-1) / weight.sum(-1) + away[:, 0]

        return steps

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors."""
        save_model(
            Path(folder),
            NAME,
            to_dict(self.config),
            {"nodes": self.nodes, "steps": self.steps},
            unit=self.unit,
            coverage=self.coverage,
            link=self.link,
            imagined=self.imagined,
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> TemporalDistance:
        """Read what :meth:`save_pretrained` wrote.

        Raises:
            ModelError: missing, damaged or newer.
        """
        folder = Path(folder)
        document = read_config(folder, NAME)
        config = parse(DistanceConfig, document["settings"], str(folder))
        weights = read_weights(folder)
        try:
            nodes, steps = weights["nodes"], weights["steps"]
            unit, coverage, link = (float(document[name]) for name in ("unit", "coverage", "link"))
            imagined = int(document["imagined"])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{folder}: holds no temporal distance: {error}") from None
        if nodes.ndim != 2 or steps.shape != (len(nodes), len(nodes)) or not unit > 0:
            raise ModelError(f"{folder}: nodes {tuple(nodes.shape)}, steps {tuple(steps.shape)}")
        return cls(config, nodes, steps, unit, coverage, link, imagined)


def fit_distance(
    latents: Tensor,
    episode: npt.NDArray[np.int64],
    config: DistanceConfig | None = None,
    imagine: Imagine | None = None,
    actions: npt.NDArray[np.int64] | None = None,
) -> TemporalDistance:
    """Fit to recorded play.

    Args:
        latents: [N, D] of frames in the order of play.
        episode: [N]; neighbours in the order with the same episode are one step apart.
        config: settings; the defaults if ``None``.
        imagine: a world model that adds steps which nobody took; ``None``: none are added.
        actions: [N], what was done after each frame, as ``imagine`` counts actions; negative:
            something else. Where an action was tried its outcome is known, be it that nothing
            moved, and none is imagined.

    Raises:
        DataError: no two consecutive frames differ.
    """
    config = config or DistanceConfig()
    latents = latents.float().cpu()
    follows = np.flatnonzero(np.diff(episode) == 0)
    change = (latents[follows + 1] - latents[follows]).norm(dim=1)
    moved = change[change > 1e-3 * latents.norm(dim=1).mean()]
    if len(moved) == 0:
        raise DataError("temporal distance: no two consecutive frames have different latents")
    unit = float(moved.median())
    nodes, node = merge(latents, config.merge * unit, config.max_nodes)
    edges = np.stack([node[follows], node[follows + 1]])
    edges = np.unique(edges[:, edges[0] != edges[1]], axis=1)
    weights = np.ones(edges.shape[1])
    added = np.empty((2, 0), np.int64)
    if imagine is not None:
        tried = np.empty((2, 0), np.int64)
        if actions is not None:
            tried = np.stack([node[follows], actions[follows]])
        added = _imagined(imagine, nodes, edges, tried, config.imagined * unit)
        edges = np.concatenate([edges, added], axis=1)
        weights = np.concatenate([weights, np.full(added.shape[1], config.imagined_steps)])
    share = _coverage(edges, node, len(nodes))
    link = 0.0
    if share < config.coverage:
        away = torch.cdist(nodes, nodes).numpy() / unit
        np.fill_diagonal(away, np.inf)
        for radius in np.linspace(0, config.max_link, _LINK_STEPS + 1)[1:]:
            alike = np.stack(np.nonzero(away <= radius))
            linked = np.concatenate([edges, alike], axis=1)
            link, share = float(radius), _coverage(linked, node, len(nodes))
            if share >= config.coverage:
                break
        if link:
            # A look-alike is at least as far as a step: shortcuts must not pay.
            weights = np.concatenate([weights, np.maximum(1.0, away[alike[0], alike[1]])])
            edges = linked
    return TemporalDistance(
        config,
        nodes,
        _paths(edges, weights, len(nodes), config.max_distance),
        unit,
        share,
        link,
        added.shape[1],
    )


@torch.no_grad()
def _imagined(
    imagine: Imagine,
    nodes: Tensor,
    taken: npt.NDArray[np.int64],
    tried: npt.NDArray[np.int64],
    radius: float,
) -> npt.NDArray[np.int64]:
    """Steps [2, E] from nodes to those that a prediction comes within ``radius`` of.

    From a node that nobody has ever left none are imagined: the game may end there. Nor are
    outcomes of actions ``tried``, int64 [2, T] of nodes and actions.
    """
    left = np.unique(taken[0])
    found = [np.empty((2, 0), np.int64)]
    for part in np.array_split(left, max(1, len(left) // _CHUNK)):
        outcomes = imagine(nodes[part])
        away, nearest = torch.cdist(outcomes.flatten(0, 1).float().cpu(), nodes).min(1)
        count = outcomes.shape[1]
        start, action = np.repeat(part, count), np.tile(np.arange(count), len(part))
        here = tried[0, tried[1] >= 0] * count + tried[1, tried[1] >= 0]
        sure = (away <= radius).numpy() & ~np.isin(start * count + action, here)
        found.append(np.stack([start[sure], nearest.numpy()[sure]]))
    edges = np.unique(np.concatenate(found, axis=1), axis=1)
    known = np.isin(edges[0] * len(nodes) + edges[1], taken[0] * len(nodes) + taken[1])
    return edges[:, ~known & (edges[0] != edges[1])]


def merge(latents: Tensor, radius: float, most: int) -> tuple[Tensor, npt.NDArray[np.int64]]:
    """Representatives, and for each latent which of them is nearest.

    The first latent not within ``radius`` of a representative becomes one. The radius grows by
    half until there are at most ``most``.
    """
    radius = max(radius, 1e-6)
    while (found := _leaders(latents, radius, most)) is None:
        radius *= 1.5
    nodes = latents[found]
    nearest = [torch.cdist(part, nodes).argmin(1) for part in torch.split(latents, _CHUNK)]
    return nodes, torch.cat(nearest).numpy()


def _leaders(latents: Tensor, radius: float, most: int) -> list[int] | None:
    leaders: list[int] = []
    for start in range(0, len(latents), _CHUNK):
        part = latents[start : start + _CHUNK]
        far = torch.ones(len(part), dtype=torch.bool)
        if leaders:
            far = torch.cdist(part, latents[leaders]).amin(1) > radius
        rest = far.nonzero().flatten()
        while len(rest):
            leaders.append(start + int(rest[0]))
            if len(leaders) > most:
                return None
            away = (part[rest] - part[rest[0]]).norm(dim=1)
            away[0] = 0.0
            rest = rest[away > radius]
    return leaders


def _graph(edges: npt.NDArray[np.int64], weights: Any, count: int) -> Any:
    from scipy.sparse import coo_matrix

    # A pair may be both a step and a link: the cheaper one holds.
    order = np.lexsort((weights, edges[1], edges[0]))
    edges, weights = edges[:, order], weights[order]
    _, first = np.unique(edges[0] * count + edges[1], return_index=True)
    edges, weights = edges[:, first], weights[first]
    return coo_matrix((weights, (edges[0], edges[1])), shape=(count, count)).tocsr()


def _coverage(edges: npt.NDArray[np.int64], node: npt.NDArray[np.int64], count: int) -> float:
    from scipy.sparse.csgraph import connected_components

    graph = _graph(edges, np.ones(edges.shape[1]), count)
    _, label = connected_components(graph, directed=True, connection="strong")
    return float(np.bincount(label[node]).max() / len(node))


def _paths(edges: npt.NDArray[np.int64], weights: Any, count: int, most: float) -> Tensor:
    from scipy.sparse.csgraph import dijkstra

    found = dijkstra(
        _graph(edges, weights, count), directed=True, unweighted=bool((weights == 1).all())
    )
    return torch.from_numpy(np.minimum(found, most)).to(torch.float16)

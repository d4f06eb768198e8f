"""The stages and their order, read from dvc.yaml by DVC itself, so the graph is written once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from iwm.errors import ConfigError
from pipelines._stage import DATA


@dataclass(frozen=True)
class Graph:
    """Stages in an order in which they can run.

    Attributes:
        upstream: stage -> the stages whose outputs it reads; iteration is topological.
        readers_of_data: stages that read ``data/`` itself.
    """

    upstream: Mapping[str, tuple[str, ...]]
    readers_of_data: frozenset[str]

    def match(self, targets: Iterable[str]) -> set[str]:
        """Stage names for what a user writes: ``train@core``, or ``train`` for all phases.

        Raises:
            ConfigError: a target names no stage.
        """
        chosen: set[str] = set()
        for target in targets:
            named = {name for name in self.upstream if target in (name, group(name))}
            if not named:
                raise ConfigError(
                    f"target {target!r} is no stage of dvc.yaml; it has {', '.join(self.upstream)}"
                )
            chosen |= named
        return chosen

    def up_to(self, targets: Iterable[str]) -> Graph:
        """The targets and everything they are made from."""
        wanted = self.match(targets)
        for name in reversed(tuple(self.upstream)):
            if name in wanted:
                wanted.update(self.upstream[name])
        return self._restricted(wanted)

    def only(self, targets: Iterable[str]) -> Graph:
        """The targets alone; what they read is taken as it lies there."""
        return self._restricted(self.match(targets))

    def _restricted(self, wanted: set[str]) -> Graph:
        return Graph(
            {
                name: tuple(above for above in before if above in wanted)
                for name, before in self.upstream.items()
                if name in wanted
            },
            self.readers_of_data & wanted,
        )


def group(stage: str) -> str:
    """``train`` for ``train@core``: the name under ``stages:`` in dvc.yaml."""
    return stage.partition("@")[0]


def load(root: Path | None = None) -> Graph:
    """Read the graph of the repository at ``root`` (default: the current folder).

    Raises:
        ConfigError: there is no DVC repository, or dvc.yaml is wrong (DVC's own words).
    """
    import networkx as nx
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

    here = (root or Path()).resolve()
    try:
        with Repo(str(here)) as repo:
            # An edge leads from a stage to what it depends on.
            graph = repo.index.graph
            order = [
                stage
                for stage in nx.lexicographical_topological_sort(
                    graph.reverse(copy=True), key=lambda stage: stage.addressing
                )
                if isinstance(stage, PipelineStage)
            ]
            upstream = {
                stage.addressing: tuple(
                    sorted(
                        above.addressing
                        for above in graph.successors(stage)
                        if isinstance(above, PipelineStage)
                    )
                )
                for stage in order
            }
            data = here / DATA
            readers = frozenset(
                stage.addressing
                for stage in order
                if any(
                    dep.protocol == "local" and Path(dep.fs_path).is_relative_to(data)
                    for dep in stage.deps
                )
            )
    except DvcException as error:
        raise ConfigError(f"{here / 'dvc.yaml'}: {' '.join(str(error).split())}") from None
    return Graph(upstream, readers)

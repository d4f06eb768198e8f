"""What Prometheus reads: counters, gauges, histograms of latency, in its text format 0.0.4."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper bounds of latencies, from a request's head to its answer."""
ITEMS = (1, 2, 4, 8, 16, 32, 64)
"""Upper bounds of batches."""


GAUGES = {
    "pending": "Requests that were taken and not answered yet.",
    "waiting": "Requests that wait for the model.",
    "model_loaded": "1 when there is a model to answer.",
}


class Histogram:
    """Counts by size.

    Args:
        bounds: upper bounds, ascending; beyond the last there is one bucket more.
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: str = "") -> Iterator[str]:
        """Prometheus' lines.

        Args:
            name: of the metric.
            labels: ``key="value",`` or nothing.
        """
        below = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            below += count
            yield f'{name}_bucket{{{labels}le="{bound}"}} {below}'
        alone = f"{{{labels.rstrip(',')}}}" if labels else ""
        yield f"{name}_sum{alone} {self._sum:.6f}"
        yield f"{name}_count{alone} {below}"


class Metrics:
    """Counters of one service. Belongs to its event loop; keys are the service's own words, so
    that nobody outside can make it grow.
    """

    def __init__(self, calls: tuple[str, ...]) -> None:
        self.served = dict.fromkeys(calls, 0)
        """Calls answered 200."""
        self._answers: dict[tuple[str, int], int] = {}
        self._latency = {call: Histogram(SECONDS) for call in calls}
        self.batches = Histogram(ITEMS)
        """Requests that the model computed together."""
        self.reloads = 0

    def observe(self, call: str, status: int, seconds: float) -> None:
        """Count an answer; the time of one that was not 200 is not latency."""
        self._answers[call, status] = self._answers.get((call, status), 0) + 1
        if status == 200:
            self.served[call] += 1
            self._latency[call].observe(seconds)

    def text(self, gauges: Mapping[str, float]) -> str:
        """Everything, with ``gauges`` as they are now."""
        return "\n".join([*self._lines(gauges), ""])

    def _lines(self, gauges: Mapping[str, float]) -> Iterator[str]:
        yield "# HELP iwm_served_total Calls answered 200."
        yield "# TYPE iwm_served_total counter"
        for call, count in self.served.items():
            yield f'iwm_served_total{{call="{call}"}} {count}'
        yield "# HELP iwm_answers_total Answers, by status."
        yield "# TYPE iwm_answers_total counter"
        for (call, status), count in sorted(self._answers.items()):
            yield f'iwm_answers_total{{call="{call}",status="{status}"}} {count}'
        yield "# HELP iwm_latency_seconds From head to answer, of calls answered 200."
        yield "# TYPE iwm_latency_seconds histogram"
        for call, histogram in self._latency.items():
            yield from histogram.lines("iwm_latency_seconds", f'call="{call}",')
        yield "# HELP iwm_batch_items Requests that the model computed together."
        yield "# TYPE iwm_batch_items histogram"
        yield from self.batches.lines("iwm_batch_items")
        yield "# HELP iwm_reloads_total Times that a newer champion took over."
        yield "# TYPE iwm_reloads_total counter"
        yield f"iwm_reloads_total {self.reloads}"
        for name, value in gauges.items():
            yield f"# HELP iwm_{name} {GAUGES[name]}"
            yield f"# TYPE iwm_{name} gauge"
            yield f"iwm_{name} {value}"

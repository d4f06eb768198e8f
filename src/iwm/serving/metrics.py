"""What Prometheus reads: counters, gauges, histograms of latency, in its text format 0.0.4."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper bounds in seconds."""


class Histogram:
    """Latencies of one call, from the request's head to the answer."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds


class Metrics:
    """Counters of one service. Belongs to its event loop; keys are the service's own words, so
    that nobody outside can make it grow.
    """

    def __init__(self, calls: tuple[str, ...]) -> None:
        self.served = dict.fromkeys(calls, 0)
        """Calls answered 200."""
        self._answers: dict[tuple[str, int], int] = {}
        self._latency = {call: Histogram() for call in calls}
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
            below = 0
            for bound, count in zip((*BUCKETS, "+Inf"), histogram.counts, strict=True):
                below += count
                yield f'iwm_latency_seconds_bucket{{call="{call}",le="{bound}"}} {below}'
            yield f'iwm_latency_seconds_sum{{call="{call}"}} {histogram.sum:.6f}'
            yield f'iwm_latency_seconds_count{{call="{call}"}} {below}'
        yield "# HELP iwm_reloads_total Times that a newer champion took over."
        yield "# TYPE iwm_reloads_total counter"
        yield f"iwm_reloads_total {self.reloads}"
        for name, value in gauges.items():
            yield f"# TYPE iwm_{name} gauge"
            yield f"iwm_{name} {value}"

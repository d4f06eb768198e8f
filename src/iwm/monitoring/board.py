"""Values of metrics, written for node_exporter's textfile collector or answered over HTTP.

Stages and flows are too short to be scraped, so each leaves a file ``iwm_<name>.prom`` in the
folder that ``IWM_METRICS_DIR`` names; node_exporter (``--collector.textfile.directory``) shows
what the files say. Nothing is written where the variable is unset.
"""

from __future__ import annotations

import math
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from iwm.errors import ConfigError
from iwm.monitoring.catalogue import Metric

if TYPE_CHECKING:
    from prometheus_client.core import Metric as Family
    from prometheus_client.registry import Collector

FOLDER = "IWM_METRICS_DIR"
PORT = "IWM_METRICS_PORT"
LOOPBACK = "127.0.0.1"


def folder() -> Path | None:
    """Where files go; ``None``: nowhere."""
    found = os.environ.get(FOLDER)
    return Path(found) if found else None


def port() -> int | None:
    """The port that a training answers on; ``None``: it does not.

    Raises:
        ConfigError: not a port.
    """
    found = os.environ.get(PORT)
    if not found:
        return None
    if not found.isdigit() or not 0 < int(found) < 65536:
        raise ConfigError(f"{PORT}: expected a port, 1 to 65535 (given {found[:80]!r})")
    return int(found)


class Board:
    """Values by metric and labels; one thread sets them, others may read.

    Args:
        name: of the file: ``iwm_<name>.prom``.
    """

    def __init__(self, name: str) -> None:
        self.name = re.sub(r"[^A-Za-z0-9_-]", "_", name)
        self._values: dict[Metric, dict[tuple[str, ...], float]] = {}
        self._lock = threading.Lock()
        self._failed = False

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """What ``metric`` is now; a number that is not finite is shown as NaN."""
        with self._lock:
            self._values.setdefault(metric, {})[labels] = (
                value if math.isfinite(value) else math.nan
            )

    def add(self, metric: Metric, *labels: str, amount: float = 1.0) -> None:
        """Count."""
        with self._lock:
            series = self._values.setdefault(metric, {})
            series[labels] = series.get(labels, 0.0) + amount

    def get(self, metric: Metric, *labels: str) -> float | None:
        """What ``metric`` is now, if anything."""
        return self._values.get(metric, {}).get(labels)

    def clear(self, metric: Metric) -> None:
        """Forget a metric's values."""
        with self._lock:
            self._values.pop(metric, None)

    def take_up(self, metrics: tuple[Metric, ...]) -> None:
        """Go on from what the file says of ``metrics``; one that cannot be read says nothing."""
        if (file := self._file()) is None:
            return
        from prometheus_client.parser import text_string_to_metric_families

        known = {metric.name: metric for metric in metrics}
        try:
            families = list(text_string_to_metric_families(file.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return
        for family in families:
            for sample in family.samples:
                metric = known.get(sample.name)
                if metric is not None and set(sample.labels) == set(metric.labels):
                    labels = (sample.labels[label] for label in metric.labels)
                    self.set(metric, sample.value, *labels)

    def collect(self) -> Iterator[Family]:
        """For prometheus_client: the families as they are now."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        with self._lock:
            values = {metric: dict(series) for metric, series in self._values.items()}
        for metric, series in values.items():
            kind: Any = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(metric.name, metric.help, labels=metric.labels)
            for labels, value in series.items():
                family.add_metric(labels, value)
            yield family

    def write(self) -> None:
        """Renew the file at once or not at all. A folder that takes no file is told of once."""
        if (file := self._file()) is None:
            return
        from prometheus_client import CollectorRegistry, write_to_textfile

        registry = CollectorRegistry()
        registry.register(cast("Collector", self))
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_to_textfile(str(file), registry)
        except OSError as error:
            if not self._failed:
                reason = error.strerror or error
                print(f"warning: {file}: metrics not written: {reason}", file=sys.stderr)
            self._failed = True

    def serve(self, at: int) -> Any:
        """Answer ``GET /metrics`` on loopback until the process ends.

        Returns:
            The server (``shutdown()``, ``server_port``); ``None`` when the port is taken.
        """
        from prometheus_client import CollectorRegistry, start_http_server

        registry = CollectorRegistry()
        registry.register(cast("Collector", self))
        try:
            server, _ = start_http_server(at, addr=LOOPBACK, registry=registry)
        except OSError as error:
            print(f"warning: {PORT} {at}: {error.strerror}; goes without", file=sys.stderr)
            return None
        return server

    def _file(self) -> Path | None:
        where = folder()
        return None if where is None else where / f"iwm_{self.name}.prom"

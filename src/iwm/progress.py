"""Progress on everything long: share done, throughput, time left.

On a terminal a live bar; in a log (CI, DVC, Prefect) one plain line every few
seconds, because carriage returns make logs unreadable.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Counts units of work and shows rate and time left.

    Args:
        label: what is being done, e.g. ``"ingest"``.
        total: units expected, or ``None`` when unknown.
        unit: the plural noun of a unit, e.g. ``"frames"``.
        initial: units done before this process started (a resumed run).
        every_s: seconds between plain lines when stderr is not a terminal.

    Use as a context manager; call :meth:`advance` from one thread.
    """

    def __init__(
        self,
        label: str,
        total: int | None,
        unit: str = "items",
        *,
        initial: int = 0,
        every_s: float = 5.0,
    ) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self._initial = initial
        self._every_s = every_s
        self._note = ""
        self._live = sys.stderr.isatty()

    def __enter__(self) -> Self:
        self._started = self._last_line = time.monotonic()
        if self._live:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(
                self.label, total=self.total, completed=self.done, rate="", note=""
            )
        return self

    def advance(self, units: int = 1, note: str | None = None) -> None:
        """Count ``units`` more as done; ``note`` replaces the text at the end of the line."""
        self.done += units
        if note is not None:
            self._note = note
        if self._live:
            self._bar.update(
                self._task, advance=units, rate=f"{self.rate:,.0f} {self.unit}/s", note=self._note
            )
        elif time.monotonic() - self._last_line >= self._every_s:
            self._last_line = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    @property
    def rate(self) -> float:
        """Units per second since the start of this process's share."""
        return (self.done - self._initial) / max(time.monotonic() - self._started, 1e-9)

    def _line(self) -> str:
        head = f"{self.label}: {self.done:,}"
        if self.total:
            head += f"/{self.total:,} ({100 * self.done / self.total:.0f} %)"
        line = f"{head} {self.unit}, {self.rate:,.0f}/s"
        if self.total and self.rate > 0 and self.done < self.total:
            line += f", {_clock((self.total - self.done) / self.rate)} left"
        return f"{line} {self._note}".rstrip()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._bar.stop()
        elapsed = _clock(time.monotonic() - self._started)
        end = "stopped after" if kind else "in"
        print(f"{self._line()} {end} {elapsed}", file=sys.stderr, flush=True)


def track(
    items: Iterable[T], label: str, total: int | None = None, unit: str = "items"
) -> Iterator[T]:
    """Iterate over ``items`` with a :class:`Progress`."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(label, total, unit) as progress:
        for item in items:
            yield item
            progress.advance()

"""What validation found, as plain values for JSON, the page and the exit code."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning"]


def figure(value: float | None) -> str:
    """A figure for people: whole numbers in full, others to four digits."""
    if value is None:
        return "none"
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"


@dataclass(frozen=True)
class Finding:
    """One expectation and what Great Expectations decided about it."""

    name: str
    severity: Severity
    says: str
    """What is expected, in words."""
    observed: float | None
    """The figure: a share 0..1, or nats for the action distribution; ``None`` if there was none."""
    bound: float
    """The most that ``observed`` may be (for ``expect_frames`` the least)."""
    success: bool
    rows: int
    """How many rows of its table it looked at."""
    error: str = ""
    """Why the expectation itself could not be evaluated."""

    def line(self) -> str:
        """The finding in one line, for an error or a warning."""
        if self.error:
            return f"{self.name}: not evaluated: {self.error}"
        return (
            f"{self.name}: {figure(self.observed)} against a bound of {figure(self.bound)} "
            f"({self.says})"
        )


@dataclass(frozen=True)
class ValidationReport:
    """All findings, and the figures the page draws."""

    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    """What could not be checked, and why."""
    actions: dict[str, int] = field(default_factory=dict)
    """``game/action`` -> good frames: the distribution the next version is compared with."""
    episode_steps: tuple[int, ...] = ()
    splits: dict[str, int] = field(default_factory=dict)
    """Good frames in each split."""
    worst: tuple[dict[str, Any], ...] = ()
    """The darkest and the least sharp frames: key, luma_mean, sharpness."""
    quarantine: tuple[dict[str, Any], ...] = ()
    """Reason -> frames, most frequent first."""

    @property
    def failed(self) -> tuple[Finding, ...]:
        """Errors: what stops the run."""
        return tuple(f for f in self.findings if not f.success and f.severity == "error")

    @property
    def warned(self) -> tuple[Finding, ...]:
        """Warnings: what is only reported."""
        return tuple(f for f in self.findings if not f.success and f.severity == "warning")

    @property
    def passed(self) -> bool:
        """Whether no expectation of severity error failed."""
        return not self.failed

    def to_json(self) -> dict[str, Any]:
        """The content of ``reports/validation.json``."""
        return {
            "passed": self.passed,
            "errors": len(self.failed),
            "warnings": len(self.warned),
            "frames": sum(self.splits.values()),
            "episodes": len(self.episode_steps),
            "splits": self.splits,
            "expectations": [dataclasses.asdict(finding) for finding in self.findings],
            "notes": list(self.notes),
            "quarantine": list(self.quarantine),
        }

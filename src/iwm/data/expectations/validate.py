"""Validate an index: build its tables, let the suite decide, collect the figures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from iwm.data.config import ValidateConfig
from iwm.data.expectations.report import ValidationReport
from iwm.data.expectations.tables import IndexTables, read_index
from iwm.gameplay.index import SPLITS

_WORST = 6


def validate_index(
    index_dir: Path, cfg: ValidateConfig, previous_actions: dict[str, int] | None = None
) -> ValidationReport:
    """Hold an index against every expectation.

    Args:
        index_dir: what ingestion wrote.
        cfg: the bounds, and severities that differ from the defaults.
        previous_actions: ``game/action`` -> frames in the previous version of the data;
            without it the action distribution is not compared.

    Raises:
        DataError: there is no whole index to read.
        ConfigError: ``severity`` names an expectation that does not exist.
    """
    from iwm.data.expectations.suite import run_checks

    tables = read_index(index_dir)
    findings = run_checks(tables, cfg, previous_actions)
    actions = Counter(tables.frames["action_name"].dropna())
    return ValidationReport(
        findings=findings,
        notes=_notes(tables, previous_actions),
        actions=dict(sorted(actions.items())),
        episode_steps=tuple(tables.episodes["steps"].tolist()),
        splits={name: int((tables.frames["split"] == name).sum()) for name in SPLITS},
        worst=_worst(tables),
        quarantine=tables.quarantine,
    )


def _notes(tables: IndexTables, previous_actions: dict[str, int] | None) -> tuple[str, ...]:
    notes = []
    if not tables.frames["action_name"].notna().any():
        notes.append("no discrete actions: their distribution is not compared")
    elif not previous_actions:
        notes.append("no previous version: the action distribution is not compared")
    if not tables.frames["held_out"].any():
        notes.append("no held-out frames: leakage is not measured")
    if tables.episodes["fps_error"].isna().any():
        count = int(tables.episodes["fps_error"].isna().sum())
        notes.append(f"{count} episodes have no fixed frame rate to check")
    return tuple(notes)


def _worst(tables: IndexTables) -> tuple[dict[str, Any], ...]:
    """The darkest frames, then the least sharp ones that are not among them."""
    frames = tables.frames[["key", "luma_mean", "sharpness"]]
    chosen: dict[str, dict[str, Any]] = {}
    for column in ("luma_mean", "sharpness"):
        for row in frames.nsmallest(_WORST, column).to_dict("records"):
            chosen[str(row["key"])] = {str(name): value for name, value in row.items()}
    return tuple(chosen.values())

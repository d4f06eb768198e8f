"""The expectations, one class each, and the checkpoint that lets them decide.

Great Expectations takes seconds to import: import this module where it is used,
inside a function.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import great_expectations as gx
import pandas as pd
from great_expectations import expectations as gxe

from iwm.data.config import ValidateConfig
from iwm.data.expectations.report import Finding, Severity
from iwm.data.expectations.tables import IndexTables
from iwm.errors import ConfigError


class ExpectFrames(gxe.ExpectTableRowCountToBeBetween):  # type: ignore[misc]
    """The index holds something."""

    min_value: int = 1


class ExpectIndexSchema(gxe.ExpectColumnValuesToBeInSet):  # type: ignore[misc]
    """Every file has the index's columns, types and order."""

    column: str = "schema_matches"
    value_set: Any = (True,)


class ExpectUniqueKeys(gxe.ExpectColumnValuesToBeUnique):  # type: ignore[misc]
    """No two good frames share a key."""

    column: str = "key"


class ExpectDecodedFrames(gxe.ExpectColumnValuesToBeInSet):  # type: ignore[misc]
    """Frames decode, and their rows make sense."""

    column: str = "decoded"
    value_set: Any = (True,)


class ExpectKnownActions(gxe.ExpectColumnValuesToBeInSet):  # type: ignore[misc]
    """Action ids stand in their recording's vocabulary."""

    column: str = "action_known"
    value_set: Any = (True,)


class ExpectNoBlackFrames(gxe.ExpectColumnValuesToBeBetween):  # type: ignore[misc]
    """Frames are brighter than a black screen; the bound on luma is given by the caller."""

    column: str = "luma_mean"


class ExpectNoFrozenFrames(gxe.ExpectColumnValuesToBeInSet):  # type: ignore[misc]
    """A frame differs from the one before it."""

    column: str = "frozen"
    value_set: Any = (False,)


class ExpectNoDuplicateFrames(gxe.ExpectColumnValuesToBeInSet):  # type: ignore[misc]
    """A frame's pixels are not seen in another episode."""

    column: str = "duplicate"
    value_set: Any = (False,)


class ExpectNoLeakage(gxe.ExpectColumnValuesToBeInSet):  # type: ignore[misc]
    """A held-out picture does not stand in the training split."""

    column: str = "leaked"
    value_set: Any = (False,)


class ExpectIncreasingTime(gxe.ExpectColumnValuesToBeInSet):  # type: ignore[misc]
    """Time increases within an episode."""

    column: str = "time_increases"
    value_set: Any = (True,)


class ExpectNominalFrameRate(gxe.ExpectColumnValuesToBeBetween):  # type: ignore[misc]
    """An episode's measured frame rate is its recording's."""

    column: str = "fps_error"
    min_value: float = 0.0


class ExpectEpisodeLength(gxe.ExpectColumnValuesToBeBetween):  # type: ignore[misc]
    """Episodes are long enough to hold a transition."""

    column: str = "steps"


class ExpectOneSplit(gxe.ExpectColumnValuesToBeBetween):  # type: ignore[misc]
    """An episode stands in one split."""

    column: str = "splits"
    max_value: int = 1


class ExpectEndedEpisodes(gxe.ExpectColumnValuesToBeInSet):  # type: ignore[misc]
    """The last row of an episode holds no action."""

    column: str = "ended"
    value_set: Any = (True,)


class ExpectStableActions(gxe.ExpectColumnKLDivergenceToBeLessThan):  # type: ignore[misc]
    """Actions are distributed as in the previous version of the data."""

    column: str = "action_name"
    tail_weight_holdout: float = 1e-3


@dataclass(frozen=True)
class Check:
    """One expectation at work: on which table, how severe, what may at most be observed."""

    name: str
    table: str
    severity: Severity
    says: str
    bound: float
    expectation: gxe.Expectation


def build_checks(
    tables: IndexTables, cfg: ValidateConfig, previous_actions: dict[str, int] | None
) -> list[Check]:
    """Every expectation that these tables call for.

    Raises:
        ConfigError: ``cfg.severity`` names an expectation that does not exist.
    """
    checks: list[Check] = []
    unused = set(cfg.severity)

    def add(
        name: str, table: str, severity: Severity, says: str, bound: float, kind: Any, **kwargs: Any
    ) -> None:
        severity = cfg.severity.get(name, severity)
        unused.discard(name)
        level = "critical" if severity == "error" else "warning"
        expectation = kind(severity=level, meta={"name": name}, **kwargs)
        checks.append(Check(name, table, severity, says, bound, expectation))

    def share(
        name: str, table: str, severity: Severity, says: str, bound: float, kind: Any, **kwargs: Any
    ) -> None:
        add(name, table, severity, says, bound, kind, mostly=1.0 - bound, **kwargs)

    share("index_schema", "files", "error", "share of files with other columns or types", 0.0,
          ExpectIndexSchema)  # fmt: skip
    add("frames", "frames", "error", "good frames, at least", 1.0, ExpectFrames)
    share("unique_keys", "frames", "error", "share of frames that share a key", 0.0,
          ExpectUniqueKeys)  # fmt: skip
    share("decode_failures", "rows", "error", "share of frames set aside",
          cfg.max_decode_failure_share, ExpectDecodedFrames)  # fmt: skip
    share("action_vocabulary", "frames", "error", "share of actions outside the vocabulary", 0.0,
          ExpectKnownActions)  # fmt: skip
    share("increasing_time", "episodes", "error", "share of episodes whose time does not increase",
          0.0, ExpectIncreasingTime)  # fmt: skip
    share("frame_rate", "episodes", "error",
          f"share of episodes over {100 * cfg.fps_tolerance:g} % off their nominal frame rate", 0.0,
          ExpectNominalFrameRate, max_value=cfg.fps_tolerance)  # fmt: skip
    share("one_split", "episodes", "error", "share of episodes that stand in two splits", 0.0,
          ExpectOneSplit)  # fmt: skip
    share("ended_episodes", "episodes", "error", "share of episodes whose last row has an action",
          0.0, ExpectEndedEpisodes)  # fmt: skip
    share("black_frames", "frames", "error", f"share of frames with luma below {cfg.black_luma:g}",
          cfg.max_black_share, ExpectNoBlackFrames, min_value=cfg.black_luma)  # fmt: skip
    share("episode_length", "episodes", "warning",
          f"share of episodes under {cfg.min_episode_steps} steps", 0.0, ExpectEpisodeLength,
          min_value=cfg.min_episode_steps)  # fmt: skip
    share("frozen_frames", "frames", "warning", "share of frames that look like the one before",
          cfg.max_frozen_share, ExpectNoFrozenFrames)  # fmt: skip
    share("duplicate_frames", "frames", "warning", "share of frames seen in another episode",
          cfg.max_duplicate_share, ExpectNoDuplicateFrames)  # fmt: skip
    share("leakage", "held_out", "warning", "share of held-out frames that look like one in train",
          cfg.max_leakage_share, ExpectNoLeakage)  # fmt: skip
    if previous_actions and tables.frames["action_name"].notna().any():
        total = sum(previous_actions.values())
        partition = {
            "values": list(previous_actions),
            "weights": [count / total for count in previous_actions.values()],
        }
        add("action_distribution", "frames", "warning",
            "nats between this action distribution and the previous version's", cfg.max_action_kl,
            ExpectStableActions, partition_object=partition, threshold=cfg.max_action_kl,
            )  # fmt: skip
    unused.discard("action_distribution")  # not always looked at
    if unused:
        raise ConfigError(
            f"validate.severity: no such expectation: {', '.join(sorted(unused))}; there are "
            f"{', '.join(check.name for check in checks)}, action_distribution"
        )
    return checks


def run_checks(
    tables: IndexTables, cfg: ValidateConfig, previous_actions: dict[str, int] | None
) -> tuple[Finding, ...]:
    """Let a checkpoint decide on every expectation, in the order they are listed."""
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    source = context.data_sources.add_pandas("index")
    held_out = tables.frames[tables.frames["held_out"]]
    batches: dict[str, pd.DataFrame] = {
        "files": tables.files,
        "rows": tables.rows,
        "frames": tables.frames,
        "episodes": tables.episodes,
        "held_out": held_out,
    }
    checks = build_checks(tables, cfg, previous_actions)
    results: dict[str, Any] = {}
    for table, frame in batches.items():
        suite = context.suites.add(gx.ExpectationSuite(name=table))
        for check in checks:
            if check.table == table:
                suite.add_expectation(check.expectation)
        asset = source.add_dataframe_asset(table)
        definition = context.validation_definitions.add(
            gx.ValidationDefinition(
                name=table, data=asset.add_batch_definition_whole_dataframe("all"), suite=suite
            )
        )
        checkpoint = context.checkpoints.add(
            gx.Checkpoint(name=table, validation_definitions=[definition], result_format="BASIC")
        )
        outcome = checkpoint.run(batch_parameters={"dataframe": frame})
        for validation in outcome.run_results.values():
            for result in validation.results:
                results[result.expectation_config.meta["name"]] = result
    return tuple(
        _finding(check, results[check.name], len(batches[check.table])) for check in checks
    )


def _finding(check: Check, result: Any, rows: int) -> Finding:
    """Read one result: the figure, and whether evaluating itself went wrong."""
    error = ""
    for info in [result.exception_info, *result.exception_info.values()]:
        if isinstance(info, dict) and info.get("raised_exception"):
            error = " ".join(str(info.get("exception_message")).split())
    details = result.result or {}
    observed = details.get("observed_value")
    if details.get("unexpected_count") is not None:
        # Among the rows that have a value: an episode without a frame rate is not looked at.
        rows = details["element_count"] - details.get("missing_count", 0)
        observed = details["unexpected_count"] / rows if rows else None
    return Finding(
        check.name, check.severity, check.says,
        None if observed is None else float(observed),
        check.bound, bool(result.success) and not error, rows, error,
    )  # fmt: skip

"""Every metric that stages, flows and training export: its name, kind, labels and meaning.

Names follow Prometheus' rules: base units, ``_total`` for counters, ``_timestamp_seconds`` for
moments (Unix time), whose age is ``time() - moment``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One metric family."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    kind: Literal["gauge", "counter"] = "gauge"


def _training(name: str, help: str, *labels: str) -> Metric:
    return Metric(f"iwm_training_{name}", help, ("phase", *labels))


STEP = _training("step", "Steps of the optimizer taken.")
STEPS = _training("planned_steps", "Steps of the optimizer until the end.")
EPOCH = _training("epoch", "Epochs taken, with their fraction.")
SPEED = _training("samples_per_second", "Samples a second over all processes.")
STEP_SECONDS = _training("step_seconds", "Mean seconds of a step since the last logged one.")
LEFT = _training("left_seconds", "Seconds until the end at the present rate.")
LOSS = _training("loss", "Loss of the last logged batch.")
RATE = _training("learning_rate", "Learning rate of the last logged step.")
FIGURE = _training(
    "figure",
    "Every other logged figure: parts of the loss, norm of the gradient, collapse statistics.",
    "figure",
)
RUNNING = _training("running", "1 while the phase trains.")
UPDATED = _training("updated_timestamp_seconds", "When the phase logged last.")
CHECKPOINT = _training("checkpoint_timestamp_seconds", "When the last checkpoint was written.")

_STAGE = ("stage", "phase")
STAGE_RUNS = Metric(
    "iwm_stage_runs_total", "Runs of a stage, by how they ended.", (*_STAGE, "result"), "counter"
)
STAGE_RUNNING = Metric("iwm_stage_running", "1 while the stage runs.", _STAGE)
STAGE_SECONDS = Metric("iwm_stage_duration_seconds", "Seconds that the last run took.", _STAGE)
STAGE_STARTED = Metric(
    "iwm_stage_start_timestamp_seconds", "When the stage was started last.", _STAGE
)
STAGE_SUCCESS = Metric(
    "iwm_stage_last_success_timestamp_seconds", "When the stage last ended without error.", _STAGE
)

FLOW_RUNS = Metric(
    "iwm_flow_runs_total", "Flow runs, by the state they ended in.", ("flow", "state"), "counter"
)
FLOW_RUNNING = Metric("iwm_flow_running", "1 while the flow runs.", ("flow",))
FLOW_SECONDS = Metric("iwm_flow_duration_seconds", "Seconds that the last run took.", ("flow",))
FLOW_SUCCESS = Metric(
    "iwm_flow_last_success_timestamp_seconds", "When the flow last completed.", ("flow",)
)

DATASET = Metric(
    "iwm_dataset_info",
    "1; the labels name the data's version: the shards' revision and what data.dvc names.",
    ("revision", "dvc"),
)
FRAMES = Metric("iwm_dataset_frames", "Frames in the shards.", ("split",))
RECORDINGS = Metric("iwm_dataset_recordings", "Recordings in the shards.")
QUARANTINED = Metric(
    "iwm_quarantined_frames", "Frames that ingestion set aside, by recording.", ("recording",)
)
GATE = Metric("iwm_gate_passed", "1 when every rule of the phase's gate holds.", ("phase",))
_RULE = ("phase", "figure")
GATE_FIGURE = Metric("iwm_gate_figure", "A figure that a gate judged, in its own unit.", _RULE)
GATE_THRESHOLD = Metric(
    "iwm_gate_threshold", "What the figure is held against, in the figure's unit.", _RULE
)
GATE_RULE = Metric("iwm_gate_rule_passed", "1 when the rule on this figure holds.", _RULE)

METRICS: tuple[Metric, ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, Metric)
)
"""All of them."""

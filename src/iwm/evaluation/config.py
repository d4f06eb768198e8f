"""Configuration of evaluation and gates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from iwm.data.config import AugmentConfig
from iwm.errors import ConfigError
from iwm.settings import settings


@settings
class ActionEvaluateConfig:
    """What an action-conditioned model is measured on, beside the counterfactual sets."""

    frames: Annotated[int, Field(gt=0)] = 4096
    """Frames of held-out play per split, whole episodes, an equal share for each recording."""
    horizon: Annotated[int, Field(gt=0)] = 8
    """Steps of the longest rollout, K."""
    windows: Annotated[int, Field(gt=0)] = 2048
    """Starts of rollouts and of temporal retrieval, at most."""
    surprise: Literal["distance", "relative", "action", "combined"] = "combined"
    """The measure whose figures the gate reads under ``surprise``; all are reported."""
    folds: Annotated[int, Field(gt=1)] = 5
    """Held-out episodes are dealt into so many folds; each is measured with what the others
    calibrated."""


@settings
class VRNNEvaluateConfig:
    """What a variational recurrent world model is measured on."""

    single: str = "vrnn-single"
    """The phase that trained the same network with a single Gaussian prior."""
    windows: Annotated[int, Field(gt=0)] = 512
    """Held-out windows, at most, spread evenly over the play."""
    horizon: Annotated[int, Field(gt=0)] = 8
    """Frames foretold; the frames before them in a training window are seen."""
    kl_samples: Annotated[int, Field(gt=0)] = 15
    """Of the Monte Carlo KL of the latents, a frame."""
    draws: Annotated[int, Field(gt=0)] = 2
    """Of latents and sticks, averaged."""


@settings
class DreamEvaluateConfig:
    """What a generative model of play is measured on."""

    next_windows: Annotated[int, Field(gt=1)] = 512
    """Windows in which the next frame alone is imagined."""
    sequences: Annotated[int, Field(gt=1)] = 64
    """Windows in which a sequence is, from one frame and from several."""
    steps: Annotated[int, Field(gt=1)] = 30
    """Frames of a sequence."""
    shown: Annotated[int, Field(gt=0)] = 4
    """Most frames that a sequence begins with."""
    action_windows: Annotated[int, Field(gt=1)] = 192
    """Windows that are imagined under the true actions and under random ones."""
    action_steps: Annotated[int, Field(gt=3)] = 8
    """Frames of these."""
    reader_pairs: Annotated[int, Field(gt=0)] = 12288
    """Real pairs of training episodes from which actions are learned to be read."""
    reader_steps: Annotated[int, Field(gt=0)] = 300
    """Batches of 128 pairs for it."""
    turn_windows: Annotated[int, Field(gt=0)] = 48
    """Starts from which turns are held, in games whose actions have these names."""
    staged: Annotated[int, Field(gt=0)] = 48
    """Fresh episodes of the procedural world, for counts and places against the truth."""
    frechet_encoder: str | None = "core"
    """The phase whose frozen encoder gives the Frechet distance its features."""


@settings
class TrajectoryEvaluateConfig:
    """What a world model on vector states is measured on."""

    horizon: Annotated[int, Field(gt=0)] = 50
    """Steps foretold from each start."""
    stride: Annotated[int, Field(gt=0)] = 12
    """States from one start of an episode to the next."""
    starts: Annotated[int, Field(gt=1)] = 2048
    """Starts, at most, spread evenly over the held-out episodes."""
    bound: Annotated[float, Field(gt=0)] = 0.25
    """Largest RMSE, in standard deviations of the states, that counts as right."""
    report: tuple[int, ...] = (1, 5, 10, 25, 50)
    """Steps at which figures are also reported alone."""


@settings
class EvaluateConfig:
    """How a trained model is measured on held-out episodes."""

    split: Literal["val", "test"] = "test"
    images: Annotated[int, Field(gt=0)] = 256
    """Images measured; each gets its own bank."""
    bank: Annotated[int, Field(gt=1)] = 256
    """Latents per bank: the same image under that many transformations."""
    rank_images: Annotated[int, Field(gt=1)] = 1024
    """Frames over which the effective rank and deviations are taken."""
    queries: Annotated[int, Field(gt=0)] = 8
    """Predictions per image, each of a different member of its bank."""
    augment: AugmentConfig = AugmentConfig()
    """Strengths of the bank's jitter; the evaluation's own, whatever the model trained with."""
    bootstrap: Annotated[int, Field(ge=100)] = 1000
    """Resamples of a confidence interval, by episode."""
    seed: int = 0
    batch_size: Annotated[int, Field(gt=0)] = 256
    streams: tuple[str, str] | None = None
    """Two phases to compare, the invariant and the equivariant one, instead of measuring one."""
    probe_frames: Annotated[int, Field(gt=1)] = 2048
    """Frames per split, in whole runs of time, for the probes of a comparison."""
    action: ActionEvaluateConfig = ActionEvaluateConfig()
    """Phase 3 alone; the fields about banks of transformations are then not used, but for
    ``bank``, the frames in a temporal bank, and the jitter of recoloured frames."""
    dream: DreamEvaluateConfig = DreamEvaluateConfig()
    """Generative models of play alone."""
    vrnn: VRNNEvaluateConfig = VRNNEvaluateConfig()
    """The variational recurrent model alone."""
    trajectories: TrajectoryEvaluateConfig = TrajectoryEvaluateConfig()
    """World models on vector states alone."""

    def __post_init__(self) -> None:
        """Refuse more queries than there are members."""
        if self.queries > self.bank:
            raise ConfigError(f"evaluate.queries {self.queries} exceeds evaluate.bank {self.bank}")


@settings
class Rule:
    """One condition of a gate: a figure of the metrics report and what it must beat.

    Exactly one of ``above``/``below`` (a constant), ``times`` (a multiple of
    ``baseline``) or a bare ``baseline`` (whose 95 % interval must not overlap)
    decides. ``figure`` and ``baseline`` are dotted keys of the metrics report.
    """

    figure: str
    above: float | None = None
    below: float | None = None
    baseline: str | None = None
    times: float | None = None
    why: str = ""

"""Configuration of validation, shards and the loader."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from iwm.gameplay.config import Positive, Share, SplitConfig, Where
from iwm.settings import settings


@settings
class ValidateConfig:
    """Bounds of the expectations; see docs/validation.md for each one's severity."""

    fps_tolerance: Share = 0.02
    """Relative deviation allowed between nominal and measured frame rate of an episode."""
    min_episode_steps: Positive = 2
    max_black_share: Share = 0.05
    black_luma: Annotated[float, Field(ge=0, le=255)] = 4.0
    max_frozen_share: Share = 0.5
    """Share of frames whose perceptual hash equals their predecessor's."""
    max_duplicate_share: Share = 0.2
    """Share of frames seen byte for byte elsewhere in another episode."""
    max_decode_failure_share: Share = 0.01
    max_action_kl: Annotated[float, Field(ge=0)] = 0.5
    """Nats between this action distribution and the previous data version's."""
    max_leakage_share: Share = 0.02
    """Share of held-out frames whose near-duplicate stands in the training split."""
    severity: dict[str, Literal["error", "warning"]] = field(default_factory=dict)
    """Expectations whose severity is not the default, e.g. ``{leakage: error}``."""


@settings
class ShardConfig:
    """Shape and encoding of the frames in the shards."""

    width: Positive = 64
    height: Positive = 64
    fit: Literal["resize", "crop"] = "resize"
    """``resize`` squeezes the whole frame; ``crop`` keeps the aspect, cuts the centre."""
    format: Literal["jpeg", "png"] = "jpeg"
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    frames_per_shard: Positive = 4096
    executor: Where = "processes"
    """Where frames are encoded; one place writes the tars."""
    workers: Positive = 2
    dask_address: str | None = None
    """As in ``ingest``."""


@settings
class LoaderConfig:
    """How training reads the shards."""

    workers: Annotated[int, Field(ge=0)] = 1
    """Decoding threads or processes beside the training loop; 0 decodes in it."""
    prefetch: Positive = 4
    """Batches kept ready."""


@settings
class AugmentConfig:
    """The two views of a frame; see :mod:`iwm.data.augment` for the exact maps."""

    crop_min: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Smallest side of the shared crop, as a share of the frame's side."""
    flip: Share = 0.5
    """Probability of the shared left-right flip."""
    brightness: Annotated[float, Field(ge=0, le=2)] = 0.6
    """Largest gain, in stops: the gain is ``2**b`` with b uniform in +- this."""
    contrast: Annotated[float, Field(ge=0, le=2)] = 0.6
    """Largest log2 scale about the frame's mean luma."""
    saturation: Annotated[float, Field(ge=0, le=2)] = 0.8
    """Largest log2 scale of the chroma."""
    hue: Annotated[float, Field(ge=0, le=3.1416)] = 0.6
    """Largest rotation of the chroma plane, in radians."""
    blur: Share = 0.2
    """Probability of Gaussian blur of the source."""
    blur_sigma: tuple[float, float] = (0.004, 0.03)
    """Range of the blur's standard deviation, as a share of the frame's height."""
    greyscale: Share = 0.2
    """Probability that the source loses its colour."""
    solarize: Share = 0.2
    """Probability that the source's bright pixels are inverted."""
    solarize_threshold: tuple[float, float] = (0.4, 0.8)


@settings
class MaskConfig:
    """Block masks on the token grid: a union of rectangles (I-JEPA's target blocks)."""

    blocks: Positive = 4
    area: tuple[float, float] = (0.15, 0.2)
    """Range of a rectangle's share of the tokens."""
    aspect: tuple[float, float] = (0.75, 1.5)
    """Range of height over width."""
    max_share: Annotated[float, Field(gt=0, lt=1)] = 0.75
    """A union that hides more than this is drawn again."""


@settings
class ParticlesConfig:
    """The world of particles; see :mod:`iwm.data.particles`."""

    episodes: Positive = 1500
    steps: Positive = 100
    """Of each episode."""
    bodies: Annotated[int, Field(ge=2, le=32)] = 3
    """The driven one included; a state has four numbers for each."""
    hold: tuple[Positive, Positive] = (3, 12)
    """Range of steps for which a force is held."""
    seed: int = 7


@settings
class TrajectoryPlan:
    """One set of trajectories under ``trajectories`` in params.yaml."""

    source: Literal["particles", "truth", "latents"]
    """``particles``: simulated afresh. ``truth``: positions beside recordings of the procedural
    world. ``latents``: frames of the shards, encoded by a trained model."""
    particles: ParticlesConfig = ParticlesConfig()
    phase: str = "action"
    """The trained model that encodes, under ``latents``."""
    recordings: tuple[str, ...] | None = None
    """Only these, under ``truth`` and ``latents``; ``null``: all with a truth table, or those
    that the encoder was trained on."""
    frames: Positive = 20000
    """Most frames of the training split to encode; held-out splits get an eighth of it each."""
    split: SplitConfig = SplitConfig()
    """Of simulated episodes; recorded ones keep the side that ingestion gave them."""

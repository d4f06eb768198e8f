"""From a checked request to arrays of the model's own shapes: one job of the batcher."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from iwm.errors import DataError
from iwm.serving.actions import position
from iwm.serving.messages import (
    HistoryRequest,
    PlanRequest,
    PredictRequest,
    RolloutRequest,
    SurpriseRequest,
)
from iwm.serving.wire import Floats, RequestError

if TYPE_CHECKING:
    from iwm.serving.config import Limits
    from iwm.serving.engine import Earlier, Engine
    from iwm.serving.plan import Search


@dataclass(frozen=True)
class Job:
    """``z_cls [D]``, ``actions [K, A]``, ``z_patches [N, D]`` or ``None``; ``past_cls [h, D]``
    and ``past_actions [h, A]``: earlier frames, h may be 0.
    """

    z_cls: Floats
    actions: Floats
    z_patches: Floats | None
    past_cls: Floats
    past_actions: Floats

    @property
    def shape(self) -> tuple[object, ...]:
        """Jobs that agree in it are computed together."""
        return len(self.actions), self.z_patches is None, len(self.past_cls)


@dataclass(frozen=True)
class SurpriseJob:
    """A step and what came of it; see :func:`iwm.serving.surprise.surprises`."""

    step: Job
    came: Floats
    among: tuple[int, ...]
    claimed: int | None

    @property
    def shape(self) -> tuple[object, ...]:
        """Jobs that agree in it are computed together."""
        return self.among, self.claimed is None, len(self.step.past_cls)


@dataclass(frozen=True)
class PlanJob:
    """A search on an engine; ``stop`` ends it."""

    engine: Engine
    search: Search
    stop: threading.Event
    words: dict[str, str]
    """The vocabulary's name of an action -> the client's own."""


def stacked_history(jobs: Sequence[Job]) -> Earlier | None:
    """The earlier frames of jobs of one shape, ``None`` without any."""
    from iwm.serving.engine import Earlier

    if not len(jobs[0].past_cls):
        return None
    return Earlier(
        np.stack([job.past_cls for job in jobs]), np.stack([job.past_actions for job in jobs])
    )


def predict_job(engine: Engine, limits: Limits, message: PredictRequest) -> Job:
    """The one step that ``/predict`` asks for.

    Raises:
        RequestError: 422 naming the field.
    """
    named = None if message.action is None else [message.action]
    numbers = None if message.aug_params is None else message.aug_params[None]
    actions = _actions(engine, named, numbers, ("action", "aug_params"))
    return _job(engine, limits, message, actions, "aug_params")


def rollout_job(engine: Engine, limits: Limits, message: RolloutRequest) -> Job:
    """The steps that ``/rollout`` asks for.

    Raises:
        RequestError: 422 naming the field.
    """
    fields = ("actions", "aug_seq")
    for field, given in zip(fields, (message.actions, message.aug_seq), strict=True):
        _bounded(engine, limits, message.z_patches, given, field)
    actions = _actions(engine, message.actions, message.aug_seq, fields)
    return _job(engine, limits, message, actions, "actions" if message.actions else "aug_seq")


def surprise_job(engine: Engine, message: SurpriseRequest, came: Floats) -> SurpriseJob:
    """The transition that ``/surprise`` asks about.

    Args:
        engine: that scores it.
        message: the request.
        came: [D], the latent after; an image's has been encoded.

    Raises:
        RequestError: 422 naming the field.
    """
    named = None if message.action is None else [message.action]
    numbers = None if message.aug_params is None else message.aug_params[None]
    actions = _actions(engine, named, numbers, ("action", "aug_params"))
    _latent(engine, message.z_cls_prev, "z_cls_prev")
    _latent(engine, came, "z_cls")
    past = _history(engine, message.history)
    step = Job(message.z_cls_prev, actions, None, *past)
    among = tuple(range(len(engine.vocabulary)))
    if message.actions is not None:
        among = tuple(dict.fromkeys(_places(engine, message.actions, "actions")))
    if message.action is None:
        return SurpriseJob(step, came, (), None)
    (claimed,) = _places(engine, [message.action], "action")
    if claimed not in among:
        raise RequestError(422, f"actions: expected them to hold the action {message.action!r}")
    return SurpriseJob(step, came, among, among.index(claimed))


def plan_job(engine: Engine, message: PlanRequest, goal: Floats | None) -> PlanJob:
    """The search that ``/plan`` asks for.

    Args:
        engine: that searches.
        message: the request, which :func:`check_plan` let pass.
        goal: [D], of the latent or the image given; ``None`` for a scoring that needs none.

    Raises:
        RequestError: 422 naming the field.
    """
    from iwm.serving.engine import Earlier
    from iwm.serving.plan import Search

    words = {name: name for name in engine.vocabulary}
    if message.actions is not None:
        places = _places(engine, message.actions, "actions")
        pairs = zip(places, message.actions, strict=True)
        words = {engine.vocabulary[place]: word for place, word in reversed(list(pairs))}
    past_cls, past_actions = _history(engine, message.history)
    stop = threading.Event()
    search = Search(
        z_cls=message.z_cls,
        goal=goal,
        scoring=message.scoring or "goal",
        actions=tuple(name for name in engine.vocabulary if name in words),
        horizon=message.horizon,
        candidates=message.candidates,
        iterations=message.iterations,
        seed=message.seed,
        history=Earlier(past_cls[None], past_actions[None]) if len(past_cls) else None,
        abandoned=stop.is_set,
    )
    return PlanJob(engine, search, stop, words)


def check_plan(engine: Engine, limits: Limits, message: PlanRequest) -> None:
    """What can be refused before a goal's image is encoded.

    Raises:
        RequestError: 422 naming the field.
    """
    if not engine.plans:
        raise RequestError(422, "actions: this model knows none by name, so it cannot plan")
    _latent(engine, message.z_cls, "z_cls")
    if message.goal_z_cls is not None:
        _latent(engine, message.goal_z_cls, "goal_z_cls")
    for field, most in (
        ("horizon", limits.max_plan_horizon),
        ("candidates", limits.max_plan_candidates),
        ("iterations", limits.max_plan_iterations),
    ):
        given = getattr(message, field)
        if given > most:
            raise RequestError(422, f"{field}: expected at most {most}, given {given}")
    steps = message.horizon * message.candidates * message.iterations
    if steps > limits.max_plan_steps:
        raise RequestError(
            422,
            "horizon x candidates x iterations: expected at most "
            f"{limits.max_plan_steps}, given {steps}",
        )


def _places(engine: Engine, names: Sequence[str], field: str) -> list[int]:
    if not engine.vocabulary:
        raise RequestError(422, f"{field}: this model knows no actions by name")
    try:
        return [position(name, engine.vocabulary) for name in names]
    except DataError as error:
        raise RequestError(422, f"{field}: {error}") from None


def _latent(engine: Engine, z_cls: Floats, field: str) -> None:
    if z_cls.shape != (engine.latent_dim,):
        raise RequestError(
            422, f"{field}: expected {engine.latent_dim} numbers, given {z_cls.shape[0]}"
        )


def _bounded(
    engine: Engine,
    limits: Limits,
    z_patches: Floats | None,
    steps: Sequence[object] | Floats | None,
    field: str,
) -> None:
    if steps is None:
        return
    most = limits.max_steps
    if z_patches is not None:
        most = max(1, min(most, limits.max_patch_numbers // (engine.patches * engine.latent_dim)))
    if len(steps) > most:
        raise RequestError(422, f"{field}: expected at most {most} actions, given {len(steps)}")


def _job(
    engine: Engine,
    limits: Limits,
    message: PredictRequest | RolloutRequest,
    actions: Floats,
    field: str,
) -> Job:
    z_cls, z_patches = message.z_cls, message.z_patches
    _latent(engine, z_cls, "z_cls")
    expected = (engine.patches, engine.latent_dim)
    if z_patches is not None and z_patches.shape != expected:
        given = " x ".join(map(str, z_patches.shape))
        raise RequestError(
            422, f"z_patches: expected {expected[0]} x {expected[1]} numbers, given {given}"
        )
    _bounded(engine, limits, z_patches, actions, field)
    return Job(z_cls, actions, z_patches, *_history(engine, message.history))


def _actions(
    engine: Engine,
    names: Sequence[str | None] | None,
    numbers: Floats | None,
    fields: tuple[str, str],
) -> Floats:
    """Action vectors ``[K, A]``: numbers padded with zeros, the named actions' one-hot set.

    Raises:
        RequestError: 422 naming one of ``fields`` (the names' and the numbers').
    """
    by_name, by_number = fields
    if names is None:
        assert numbers is not None, "the request holds one of the two"
        return _padded(numbers, engine.aug_dim, by_number)
    try:
        vectors = engine.action_vector(names)
    except DataError as error:
        raise RequestError(422, f"{by_name}: {error}") from None
    if numbers is None:
        return vectors
    if len(numbers) != len(names):
        raise RequestError(
            422, f"{by_number}: expected as many as {by_name}, {len(names)}, given {len(numbers)}"
        )
    vectors[:, : engine.augmentation_dim] = _padded(numbers, engine.augmentation_dim, by_number)
    return vectors


def _history(engine: Engine, history: HistoryRequest | None) -> tuple[Floats, Floats]:
    """Earlier latents and actions; empty without a history.

    Raises:
        RequestError: 422 naming the field.
    """
    width = engine.latent_dim
    if history is None:
        return np.zeros((0, width), np.float32), np.zeros((0, engine.aug_dim), np.float32)
    count = len(history.z_cls)
    if count > engine.history:
        reach = f"at most {engine.history} earlier frames" if engine.history else "none"
        raise RequestError(422, f"history: this model takes {reach}, given {count}")
    if history.z_cls.shape[1] != width:
        raise RequestError(
            422, f"history.z_cls: expected rows of {width} numbers, given {history.z_cls.shape[1]}"
        )
    fields = ("history.actions", "history.aug_seq")
    actions = _actions(engine, history.actions, history.aug_seq, fields)
    if len(actions) != count:
        field = fields[history.actions is None]
        raise RequestError(
            422, f"{field}: expected one for each of the {count} latents, given {len(actions)}"
        )
    return history.z_cls, actions


def _padded(values: Floats, width: int, field: str) -> Floats:
    """Actions ``[K, n]`` with zeros appended up to ``width``.

    Raises:
        RequestError: 422, longer than that.
    """
    given = values.shape[-1]
    if given > width:
        raise RequestError(
            422, f"{field}: expected at most {width} numbers an action, given {given}"
        )
    padded = np.zeros((*values.shape[:-1], width), np.float32)
    padded[..., :given] = values
    return padded

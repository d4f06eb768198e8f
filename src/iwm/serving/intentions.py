"""``POST /imagine`` and ``POST /intention``: messages, calls, answers, examples.

Both use a world model of states beside the model that answers the other calls (a folder
``embodied`` among the variants); without one they are answered 404, but for intentions that
come compressed and need no model.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_validator,
)
from starlette.requests import Request
from starlette.responses import Response

from iwm.errors import DataError, ModelError
from iwm.serving import answers, wire
from iwm.serving.actions import position
from iwm.serving.embodied import EMBODIED, Imaginer, Posted
from iwm.serving.wire import Matrix, RequestError, Vector

if TYPE_CHECKING:
    from iwm.agents.imagination import Imagination
    from iwm.serving.config import Limits
    from iwm.serving.models import Models
    from iwm.serving.runtime import Runtime

Name = Annotated[StrictStr, Field(min_length=1, max_length=64)]
Number = Annotated[StrictFloat | StrictInt, Field(ge=-1e308, le=1e308)]
Count = Annotated[StrictInt, Field(ge=1)]
Round = Annotated[StrictInt, Field(ge=0, lt=2**53)]


class ImagineRequest(BaseModel):
    """A state; the futures that follow it, and the best of them.

    ``target``: a state to get to, ``null`` in what does not matter; without one the model's own
    reward judges. ``actions`` (by name) or ``action_seq`` (by numbers): one plan, imagined
    ``rollouts`` times; random plans without one.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="ignore")
    state: Vector
    target: Annotated[list[Number | None], Field(min_length=1)] | None = None
    actions: Annotated[list[StrictStr], Field(min_length=1)] | None = None
    action_seq: Matrix | None = None
    rollouts: Count = 10
    horizon: Count | None = None
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] = 0
    every: StrictBool = False

    @model_validator(mode="after")
    def _one_plan(self) -> ImagineRequest:
        if self.actions is not None and self.action_seq is not None:
            raise ValueError("actions or action_seq: expected one of the two")
        return self


class ImagineResponse(BaseModel):
    """The best future: states and actions ``[H]``, how unsure each state is (expected RMSE in
    standard deviations), and the returns of all futures.
    """

    best: int
    returns: list[float]
    confidence: float = Field(description="Share of variance that the model expects to explain")
    states: list[list[float]]
    actions: list[list[float]]
    action_names: list[str] | None
    uncertainty: list[float]
    all_states: list[list[list[float]]] | None = Field(description="[n, H, S] with every: true")
    milliseconds: float
    timestamp: float


class IntentionRequest(BaseModel):
    """What an agent means to do in a round: a trajectory to compress, or an intention as
    ``text``.

    ``room``: where others read it and where theirs are read; ``agents``: whose are awaited,
    ``wait_ms`` at most.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="ignore")
    agent: Name
    round: Round
    room: Name | None = None
    text: Annotated[StrictStr, Field(max_length=49)] | None = None
    trajectory: Matrix | None = None
    goal: StrictStr | Number | Annotated[list[Number], Field(min_length=1)] = ""
    confidence: Annotated[float, Field(ge=0, le=1)] = 1.0
    outcome: Number | None = None
    agents: Annotated[list[Name], Field(max_length=64)] = []
    wait_ms: Annotated[StrictInt, Field(ge=0, le=1000)] = 0

    @model_validator(mode="after")
    def _one_way(self) -> IntentionRequest:
        if (self.text is None) == (self.trajectory is None):
            raise ValueError("text or trajectory: expected exactly one of the two")
        return self


class HeardResponse(BaseModel):
    """Another agent's intention of this round. ``plan``: the states it means to go through;
    ``null`` where it was not compressed here.
    """

    agent: str
    text: str
    goal: str | float | list[float]
    confidence: float | None
    outcome: float | None
    plan: list[list[float]] | None


class IntentionResponse(BaseModel):
    """The intention as it is sent, and what the others of the room mean to do. ``stale``:
    agents whose newest intention is of another round; ``missing``: those awaited in vain.
    """

    intention: str
    bytes: int
    others: list[HeardResponse]
    stale: list[str]
    missing: list[str]
    timestamp: float


async def imagine(runtime: Runtime, models: Models, _: Request, body: bytes) -> Response:
    """``POST /imagine``."""
    imaginer = _imaginer(models, "imagine")
    message = wire.parse_request(ImagineRequest, body)
    rollouts, horizon, plan = _checked(imaginer, runtime.config.limits, message)

    def work() -> tuple[Imagination, float]:
        from iwm.agents.imagination import Goal

        begun = time.perf_counter()
        target = message.target
        goal = None if target is None else np.array(target, np.float32)
        found = imaginer.generator.generate(
            message.state[None],
            [Goal("", goal)],
            plans=plan,
            rollouts=rollouts,
            horizon=horizon,
            seed=message.seed,
        )
        return found, 1000 * (time.perf_counter() - begun)

    try:
        found, milliseconds = await runtime.imagine(work)
    except ModelError as error:
        raise RequestError(422, str(error)) from None
    if not np.isfinite(found.states).all() or not np.isfinite(found.returns).all():
        raise RequestError(422, "state or target: with it the model imagines no finite numbers")
    return answers.json_response(_imagined(imaginer, found, message.every, milliseconds))


def _imagined(
    imaginer: Imaginer, found: Imagination, every: bool, milliseconds: float
) -> dict[str, Any]:
    from iwm.agents.reasoner import confidence

    best = found.trajectory(0, int(found.best[0]))
    names = None
    if imaginer.vocabulary:
        names = [imaginer.vocabulary[place] for place in best.actions.argmax(-1)]
    return {
        "best": int(found.best[0]),
        "returns": np.ascontiguousarray(found.returns[0]),
        "confidence": float(confidence(best.uncertainty)),
        "states": np.ascontiguousarray(best.states),
        "actions": np.ascontiguousarray(best.actions),
        "action_names": names,
        "uncertainty": np.ascontiguousarray(best.uncertainty),
        "all_states": np.ascontiguousarray(found.states[0]) if every else None,
        "milliseconds": milliseconds,
        "timestamp": time.time(),
    }


async def intention(runtime: Runtime, models: Models, _: Request, body: bytes) -> Response:
    """``POST /intention``."""
    from iwm.agents.intention import fields_of

    message = wire.parse_request(IntentionRequest, body)
    try:
        if message.trajectory is not None:
            compressor = _imaginer(models, "intention: trajectory").compressor
            text = compressor.compress(
                message.trajectory, message.goal, message.confidence, outcome=message.outcome
            )
        else:
            text = str(message.text)
            fields_of(text)
    except DataError as error:
        raise RequestError(422, str(error)) from None
    here: dict[str, Posted] = {}
    if message.room is not None:
        posted = Posted(message.round, text, message.trajectory is not None)
        runtime.board.post(message.room, message.agent, posted)
        here = await runtime.board.others(
            message.room, message.agent, message.round, message.agents, message.wait_ms / 1000
        )
    now = {name: one for name, one in here.items() if one.round == message.round}
    return answers.json_response(
        {
            "intention": text,
            "bytes": len(text.encode()),
            "others": [_heard(models.imaginer, name, one) for name, one in now.items()],
            "stale": [name for name in here if name not in now],
            "missing": [
                name for name in message.agents if name not in now and name != message.agent
            ],
            "timestamp": time.time(),
        }
    )


def _heard(imaginer: Imaginer | None, agent: str, posted: Posted) -> dict[str, Any]:
    from iwm.agents.intention import fields_of

    fields = fields_of(posted.text)
    plan = None
    if posted.ours and imaginer is not None:
        try:
            plan = imaginer.compressor.decompress(posted.text).trajectory
        except DataError:  # of a model that was exchanged meanwhile
            plan = None
    return {
        "agent": agent,
        "text": posted.text,
        "goal": fields["g"],
        "confidence": fields["c"] / 100 if "c" in fields else None,
        "outcome": fields.get("o"),
        "plan": None if plan is None else np.ascontiguousarray(plan),
    }


def _imaginer(models: Models, call: str) -> Imaginer:
    if models.imaginer is None:
        raise RequestError(
            404,
            f"{call}: this service holds no world model of states ({EMBODIED}); it holds "
            f"{', '.join(models.engines())}",
        )
    return models.imaginer


def _checked(
    imaginer: Imaginer, limits: Limits, message: ImagineRequest
) -> tuple[int, int, wire.Floats | None]:
    """Rollouts, horizon and plan ``[H, A]``, within the bounds.

    Raises:
        RequestError: 422 naming the field.
    """
    config = imaginer.model.config
    for name, given, wanted in (
        ("state", len(message.state), config.state_dim),
        ("target", len(message.target or ()), config.state_dim if message.target else 0),
    ):
        if given != wanted:
            raise RequestError(422, f"{name}: expected {wanted} numbers, given {given}")
    plan = None
    if message.actions is not None:
        if not config.vocabulary:
            raise RequestError(422, "actions: this model knows none by name; use action_seq")
        try:
            places = [position(name, config.vocabulary) for name in message.actions]
        except DataError as error:
            raise RequestError(422, f"actions: {error}") from None
        plan = np.eye(config.action_dim, dtype=np.float32)[places]
    elif message.action_seq is not None:
        plan = message.action_seq
        if plan.shape[1] != config.action_dim:
            raise RequestError(
                422,
                f"action_seq: expected {config.action_dim} numbers a step, given {plan.shape[1]}",
            )
    horizon = message.horizon or (config.horizon if plan is None else len(plan))
    if plan is not None and horizon != len(plan):
        raise RequestError(422, f"horizon: expected {len(plan)}, as long as the plan")
    for name, count, most in (
        ("rollouts", message.rollouts, limits.max_imagined),
        ("horizon", horizon, limits.max_steps),
    ):
        if count > most:
            raise RequestError(422, f"{name}: expected at most {most}, given {count}")
    numbers = message.rollouts * horizon * config.state_dim
    if numbers > limits.max_patch_numbers:
        raise RequestError(
            422,
            f"rollouts x horizon x state: expected at most {limits.max_patch_numbers} numbers, "
            f"given {numbers}",
        )
    return message.rollouts, horizon, plan


def fit(schemas: dict[str, Any], imaginer: Imaginer) -> None:
    """The loaded model's own lengths, in the requests' schemas."""
    config = imaginer.model.config
    imagine, trajectory = (
        schemas[name]["properties"] for name in ("ImagineRequest", "IntentionRequest")
    )
    state = {"minItems": config.state_dim, "maxItems": config.state_dim}
    width = {"minItems": config.action_dim, "maxItems": config.action_dim}
    imagine["state"].update(state)
    _array(imagine["target"]).update(state)
    _array(imagine["action_seq"])["items"].update(width)
    rows = _array(trajectory["trajectory"])
    rows["maxItems"] = imaginer.compressor.codec.horizon
    rows["items"].update(state)


def _array(schema: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in schema["anyOf"] if one.get("type") == "array")
    return found


def examples(imaginer: Imaginer | None, timestamp: float) -> tuple[Any, Any]:
    """Requests and answers for the documentation, in the loaded model's own sizes.

    Returns:
        Call -> {name: request}, and call -> answer.
    """
    size = imaginer.model.state_dim if imaginer else 4
    width = imaginer.model.action_dim if imaginer else 2
    state, still = [round(0.1 * (i % 7), 1) for i in range(size)], [0.0] * width
    requests: dict[str, dict[str, Any]] = {
        "imagine": {
            "futures": {"state": state, "rollouts": 5, "horizon": 4},
            "towards": {"state": state, "target": [1.0, *[None] * (size - 1)], "horizon": 4},
            "plan": {"state": state, "action_seq": [still, still], "rollouts": 2, "every": True},
        },
        "intention": {
            "text": {"agent": "red", "round": 3, "room": "match-1", "text": '{"g":"flag","c":85}'},
        },
    }
    if imaginer is not None:
        requests["intention"]["trajectory"] = {
            "agent": "blue",
            "round": 3,
            "room": "match-1",
            "trajectory": [state, state],
            "goal": "flag",
            "confidence": 0.85,
            "agents": ["red"],
            "wait_ms": 20,
        }
    return requests, {
        "imagine": {
            "best": 0,
            "returns": [1.5, 0.9],
            "confidence": 0.93,
            "states": [state, state],
            "actions": [still, still],
            "action_names": None,
            "uncertainty": [0.08, 0.11],
            "all_states": None,
            "milliseconds": 6.0,
            "timestamp": timestamp,
        },
        "intention": {
            "intention": '{"g":"flag","c":85}',
            "bytes": 19,
            "others": [
                {
                    "agent": "blue",
                    "text": '{"g":2,"c":70}',
                    "goal": 2,
                    "confidence": 0.7,
                    "outcome": None,
                    "plan": None,
                }
            ],
            "stale": [],
            "missing": [],
            "timestamp": timestamp,
        },
    }

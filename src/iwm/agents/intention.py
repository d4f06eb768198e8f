"""Intentions: what an agent means to do, as JSON of at most 49 bytes.

A byte-level BPE makes at most one token of a byte, so that 49 bytes are fewer than 50 tokens for
every such tokenizer there is. Keys, in the order in which they are given up when the space does
not suffice (the last never):

====  ==============================================================
``o``  outcome: the return that is expected, two digits
``c``  confidence, percent
``p``  the plan: a code of the trajectory, as long as there is space
``g``  the goal: a name, a number or a list of numbers
====  ==============================================================
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from iwm.agents.codec import MAX_CODE, Floats, TrajectoryCodec
from iwm.errors import DataError

MAX_BYTES = 49
PLAN_FIRST = {"o": 26, "c": 16, "p": 8}
"""Characters that a plan must get for the key to be written beside it. What others do with an
intention, they do with its plan; an outcome is written where it costs the plan little."""
_REMEMBERED = 1024
DROPPED_FIRST = ("o", "c", "p")
Goal = str | int | float | tuple[int | float, ...]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One future: ``states [H, S]``, ``actions [H, A]``, the return expected of it, and how
    unsure every state is ``[H]``.
    """

    states: Floats
    actions: Floats
    value: float
    uncertainty: Floats


@dataclass(frozen=True, eq=False)
class Intention:
    """What a message says; ``None`` for what was given up.

    ``features [H, F]``: the plan in the codec's directions.
    """

    goal: Goal
    confidence: float | None
    outcome: float | None
    features: Floats | None
    codec: TrajectoryCodec = field(repr=False)

    @property
    def trajectory(self) -> Floats | None:
        """The plan's states ``[H, S]``."""
        return None if self.features is None else self.codec.lift(self.features)


class IntentionCompressor:
    """Makes intentions of trajectories, and reads them; both sides hold the same codec."""

    def __init__(self, codec: TrajectoryCodec) -> None:
        self.codec = codec
        self._remembered = lru_cache(maxsize=_REMEMBERED)(self._read)

    def compress(
        self,
        trajectory: Trajectory | npt.NDArray[Any],
        goal: str | int | float | Sequence[int | float],
        confidence: float,
        *,
        outcome: float | None = None,
    ) -> str:
        """A message of at most :data:`MAX_BYTES` bytes.

        Args:
            trajectory: what is planned, or its states ``[H, S]``.
            goal: what for.
            confidence: in [0, 1].
            outcome: the return expected; that of the trajectory where it has one.

        Raises:
            DataError: a goal so long that it alone does not fit, or values out of range.
        """
        states = trajectory
        if isinstance(trajectory, Trajectory):
            states = trajectory.states
            outcome = trajectory.value if outcome is None else outcome
        if not 0 <= confidence <= 1:
            raise DataError(f"confidence: expected a number from 0 to 1, given {confidence}")
        fields: dict[str, Any] = {"g": _checked_goal(goal), "c": round(100 * confidence)}
        if outcome is not None:
            if not math.isfinite(outcome):
                raise DataError(f"outcome: expected a finite number, given {outcome}")
            fields["o"] = _two_digits(outcome)
        for key in DROPPED_FIRST:
            room = min(MAX_BYTES - _size(_written({**fields, "p": ""})), MAX_CODE)
            needed = PLAN_FIRST[next(name for name in DROPPED_FIRST if name in (*fields, "p"))]
            if room >= needed:
                return _written({**fields, "p": self.codec.encode(np.asarray(states), room)})
            fields.pop(key, None)
        message = _written(fields)
        if _size(message) <= MAX_BYTES:
            return message
        raise DataError(
            f"goal: expected at most {MAX_BYTES - _size(_written({'g': ''}))} bytes, "
            f"given {_size(str(goal))}"
        )

    def decompress(self, message: str) -> Intention:
        """What a message says: the inverse of :meth:`compress`, as exactly as it was kept.

        One message is heard by many: what it says is remembered, and its arrays are read-only.

        Raises:
            TooLong: more than :data:`MAX_BYTES` bytes.
            NotJson: not JSON.
            DataError: JSON that is no intention.
        """
        _check_size(message)
        return self._remembered(message)

    def _read(self, message: str) -> Intention:
        fields = fields_of(message)
        features = None
        if "p" in fields:
            features = self.codec.decode([fields["p"]])[0]
            features.flags.writeable = False
        return Intention(
            _read_goal(fields["g"]),
            fields["c"] / 100 if "c" in fields else None,
            float(fields["o"]) if "o" in fields else None,
            features,
            self.codec,
        )


class TooLong(DataError):
    """A message of more bytes than an intention has."""


class NotJson(DataError):
    """A message that is not JSON."""


def _written(fields: dict[str, Any]) -> str:
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False)


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _two_digits(value: float) -> int | float:
    """Rounded to two significant digits, written as shortly as JSON can."""
    rounded = float(f"{value:.1e}")
    return int(rounded) if rounded == int(rounded) and abs(rounded) < 1e6 else rounded


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _checked_goal(goal: Any) -> Any:
    if isinstance(goal, str):
        try:
            goal.encode()
        except UnicodeEncodeError:
            raise DataError("goal: expected text of whole characters") from None
        return goal
    plain = goal.tolist() if isinstance(goal, (np.ndarray, np.generic)) else goal
    if _is_number(plain):
        return plain
    if isinstance(plain, (list, tuple)) and plain and all(_is_number(item) for item in plain):
        return list(plain)
    raise DataError("goal: expected text, a finite number or a list of them")


def _read_goal(goal: Any) -> Goal:
    return tuple(goal) if isinstance(goal, list) else goal


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _check_size(message: Any) -> None:
    if not isinstance(message, str):
        raise NotJson("intention: expected text")
    if len(message) > MAX_BYTES or _size(message) > MAX_BYTES:
        raise TooLong(f"intention: expected text of at most {MAX_BYTES} bytes")


def fields_of(message: str) -> dict[str, Any]:
    """The fields of a message as they are written; whether its plan is one, a codec knows.

    Raises:
        TooLong: more than :data:`MAX_BYTES` bytes.
        NotJson: not JSON.
        DataError: JSON that is no intention.
    """
    _check_size(message)
    try:
        fields = json.loads(message, parse_constant=_refuse_constant)
    except ValueError:
        raise NotJson("intention: expected JSON") from None
    if not isinstance(fields, dict) or "g" not in fields or not fields.keys() <= set("gcop"):
        raise DataError("intention: expected an object with the key g and no others than c, o, p")
    _checked_goal(fields["g"])
    if "c" in fields:
        whole = isinstance(fields["c"], int) and not isinstance(fields["c"], bool)
        if not whole or not 0 <= fields["c"] <= 100:
            raise DataError("intention: c: expected whole percent")
    if "o" in fields and not _is_number(fields["o"]):
        raise DataError("intention: o: expected a finite number")
    if "p" in fields and not isinstance(fields["p"], str):
        raise DataError("intention: p: expected text")
    return fields

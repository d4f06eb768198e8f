"""The wire: from JSON to checked values and back. :mod:`iwm.serving.messages` has the messages.

Lists of numbers become float32 arrays at once; strings, null, NaN, infinities and ragged
lists are refused with the name of the field. Unknown keys are ignored, as the older
service did, so that clients written for it need no change.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import (
    BaseModel,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
)

Floats = npt.NDArray[np.float32]
Model = TypeVar("Model", bound=BaseModel)


class RequestError(Exception):
    """A request that is refused: an HTTP status and one line that names the field.

    Attributes:
        status: 4xx, or 503 when the service cannot serve now.
        detail: the line.
        headers: extra headers of the answer.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers


def _array(value: Any, ndim: int) -> Floats:
    what = ("a number", "a list of numbers", "a list of equally long lists of numbers")[ndim]
    if not isinstance(value, (list, tuple, np.ndarray)):
        raise ValueError(f"expected {what}, given {type(value).__name__}")
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):  # ragged, or an integer beyond 64 bits
        raise ValueError(f"expected {what}") from None
    if array.ndim != ndim or array.size == 0 or array.dtype.kind not in "iuf":
        raise ValueError(f"expected {what}, not empty")
    with np.errstate(over="ignore", invalid="ignore"):
        flat = array.ravel()
        # Most are of a length that needs no closer look: one product instead of asking each.
        short = array.dtype == np.float64 and flat.dot(flat) < 1e30
        array = np.ascontiguousarray(array, dtype=np.float32)
    if not short and not np.isfinite(array).all():
        raise ValueError("expected finite numbers")
    return array


def _vector(value: Any) -> Floats:
    return _array(value, 1)


def _matrix(value: Any) -> Floats:
    return _array(value, 2)


_NUMBERS = {"type": "array", "items": {"type": "number"}, "minItems": 1}
Vector = Annotated[np.ndarray, PlainValidator(_vector), WithJsonSchema(_NUMBERS)]
Matrix = Annotated[
    np.ndarray,
    PlainValidator(_matrix),
    WithJsonSchema({"type": "array", "items": _NUMBERS, "minItems": 1}),
]


class ErrorResponse(BaseModel):
    """Every refusal: one line naming the field and what was expected."""

    detail: str


def parse_request(cls: type[Model], body: bytes) -> Model:
    """Read a JSON body.

    Raises:
        RequestError: 400 when it is not JSON, 422 when a field is not what it must be.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(400, f"body: expected JSON: {error}") from None
    if not isinstance(value, dict):
        raise RequestError(422, f"body: expected an object, given {type(value).__name__}")
    try:
        return cls.model_validate(value)
    except ValidationError as error:
        raise RequestError(422, "; ".join(_line(item) for item in error.errors())) from None


def _line(item: Any) -> str:
    message = str(item["msg"]).removeprefix("Value error, ")
    field = ".".join(str(part) for part in item["loc"])
    return f"{field}: {message}" if field else message


def decode_base64(text: str, field: str = "image_b64") -> bytes:
    """Bytes of an image in JSON; a ``data:`` prefix and line breaks are allowed.

    Raises:
        RequestError: 422, not base64.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        # Several times as fast as base64.b64decode(validate=True), which asks a pattern first.
        return binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError):
        pass
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(422, f"{field}: expected base64: {error}") from None


def dumps(value: Any) -> bytes:
    """JSON of an answer; arrays are written as they are."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)

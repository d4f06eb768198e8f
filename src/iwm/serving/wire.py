"""The wire: what requests must hold, what answers always hold.

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
    ConfigDict,
    Field,
    PlainValidator,
    StrictBool,
    StrictStr,
    ValidationError,
    WithJsonSchema,
    model_validator,
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
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(array).all():
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


class _Request(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True, extra="ignore")


class EncodeRequest(_Request):
    """An image, as base64 of a PNG or JPEG, or as a path below the server's image root."""

    image_b64: str | None = None
    image_path: str | None = None
    return_patches: StrictBool = False

    @model_validator(mode="after")
    def _one_image(self) -> EncodeRequest:
        if (self.image_b64 is None) == (self.image_path is None):
            raise ValueError("image_b64 or image_path: expected exactly one of the two")
        return self


Names = Annotated[list[StrictStr], Field(min_length=1)]


class HistoryRequest(_Request):
    """Earlier frames, oldest first, and the action taken after each; the last of them led to
    the frame of ``z_cls``. An action that is not known is ``null``.
    """

    z_cls: Matrix
    actions: Annotated[list[StrictStr | None], Field(min_length=1)] | None = None
    aug_seq: Matrix | None = None

    @model_validator(mode="after")
    def _some_action(self) -> HistoryRequest:
        _needs_one(actions=self.actions, aug_seq=self.aug_seq)
        return self


class PredictRequest(_Request):
    """A latent and an action, by name or by numbers; ``z_patches`` are used where given."""

    z_cls: Vector
    z_patches: Matrix | None = None
    aug_params: Vector | None = None
    action: StrictStr | None = None
    history: HistoryRequest | None = None

    @model_validator(mode="after")
    def _some_action(self) -> PredictRequest:
        _needs_one(aug_params=self.aug_params, action=self.action)
        return self


class RolloutRequest(_Request):
    """A latent and k actions, by name or by numbers."""

    z_cls: Vector
    z_patches: Matrix | None = None
    aug_seq: Matrix | None = None
    actions: Names | None = None
    history: HistoryRequest | None = None

    @model_validator(mode="after")
    def _some_action(self) -> RolloutRequest:
        _needs_one(aug_seq=self.aug_seq, actions=self.actions)
        return self


def _needs_one(**fields: Any) -> None:
    if all(value is None for value in fields.values()):
        raise ValueError(f"{' or '.join(fields)}: expected one of the two")


class EncodeResponse(BaseModel):
    """Latents of one image."""

    model_config = ConfigDict(protected_namespaces=())
    z_cls: list[float]
    z_patches: list[list[float]] | None
    timestamp: float = Field(description="Unix time, seconds")
    latent_dim: int
    model_variant: str


class PredictResponse(BaseModel):
    """The latent after the action. ``mrr``: calibrated confidence in [0, 1], higher is
    surer; ``uncertainty``: calibrated expected distance to the true latent; null where the
    model carries no calibration.
    """

    z_cls_pred: list[float]
    z_patches_pred: list[list[float]] | None
    mrr: float | None
    uncertainty: float | None
    timestamp: float


class RolloutResponse(BaseModel):
    """One prediction a step, each from the one before."""

    z_cls_seq: list[list[float]]
    z_patches_seq: list[list[list[float]]] | None
    mrr_seq: list[float | None]
    uncertainty_seq: list[float | None]
    timestamp: float


class HealthResponse(BaseModel):
    """Always 200; ``status`` is ``ok`` or ``model_not_loaded``."""

    model_config = ConfigDict(protected_namespaces=())
    status: str
    model_loaded: bool
    model_variant: str
    device: str
    uptime_seconds: float
    total_encodes: int
    total_predicts: int
    total_rollouts: int


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


def decode_base64(text: str) -> bytes:
    """Bytes of an ``image_b64``; a ``data:`` prefix and line breaks are allowed.

    Raises:
        RequestError: 422, not base64.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(422, f"image_b64: expected base64: {error}") from None


def dumps(value: Any) -> bytes:
    """JSON of an answer; arrays are written as they are."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)

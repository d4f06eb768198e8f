"""The messages: what requests must hold, what answers always hold, ``null`` where empty."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, model_validator

from iwm.serving.wire import Matrix, Vector


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
Choices = Annotated[list[StrictStr], Field(min_length=1, max_length=256)]
"""Which actions there are to choose from."""


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


Scoring = Literal["goal", "certainty", "curiosity"]
Count = Annotated[StrictInt, Field(ge=1)]
Seed = Annotated[StrictInt, Field(ge=0, lt=2**63)]


class PlanRequest(_Request):
    """A start and what is wanted: a goal's latent, a goal's image, or a scoring by name.

    ``scoring``: ``goal`` (nearness to it, the default where there is one), ``certainty`` (ways
    the model knows), ``curiosity`` (ways it does not). ``actions``: which ones may be used, by
    name; the whole vocabulary by default.
    """

    z_cls: Vector
    goal_z_cls: Vector | None = None
    goal_image_b64: StrictStr | None = None
    scoring: Scoring | None = None
    horizon: Count = 8
    candidates: Count = 300
    iterations: Count = 10
    seed: Seed = 0
    actions: Choices | None = None
    history: HistoryRequest | None = None

    @model_validator(mode="after")
    def _some_aim(self) -> PlanRequest:
        goals = [self.goal_z_cls is not None, self.goal_image_b64 is not None]
        if all(goals):
            raise ValueError("goal_z_cls or goal_image_b64: expected one of the two")
        if self.scoring in (None, "goal") and not any(goals):
            raise ValueError("goal_z_cls, goal_image_b64 or scoring: expected a goal or a scoring")
        if self.scoring not in (None, "goal") and any(goals):
            raise ValueError(f"scoring: {self.scoring!r} takes no goal")
        return self


class SurpriseRequest(_Request):
    """The latent before, what was done, and what came: a latent or an image.

    ``actions``: what could have been done, by name; the whole vocabulary by default.
    """

    z_cls_prev: Vector
    action: StrictStr | None = None
    aug_params: Vector | None = None
    z_cls: Vector | None = None
    image_b64: StrictStr | None = None
    actions: Choices | None = None
    history: HistoryRequest | None = None

    @model_validator(mode="after")
    def _whole(self) -> SurpriseRequest:
        _needs_one(aug_params=self.aug_params, action=self.action)
        if (self.z_cls is None) == (self.image_b64 is None):
            raise ValueError("z_cls or image_b64: expected exactly one of the two")
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


class DualResponse(BaseModel):
    """One image through both streams: ``semantic`` keeps what a frame means whatever its light
    and framing, ``equivariant`` also keeps those.
    """

    semantic: list[float]
    equivariant: list[float]
    semantic_patches: list[list[float]] | None
    equivariant_patches: list[list[float]] | None
    semantic_variant: str
    equivariant_variant: str
    timestamp: float


class CandidateResponse(BaseModel):
    """One more sequence, and its score."""

    actions: list[str]
    score: float


class PlanResponse(BaseModel):
    """The best sequence found. Scores: higher is better; 0 is a goal reached at every step.

    ``z_cls_seq``: the latents it is predicted to lead to; ``uncertainty_seq``: their calibrated
    expected distance to the true ones, ``null`` without a calibration.
    """

    actions: list[str]
    score: float
    runners_up: list[CandidateResponse]
    z_cls_seq: list[list[float]]
    uncertainty_seq: list[float | None]
    milliseconds: float = Field(description="Of the search")
    timestamp: float


class SurpriseResponse(BaseModel):
    """How far what came lies from what was predicted.

    Calibrated, 2.0 is what 5 % of ordinary play exceeds; else it is the plain distance, and
    there is no threshold. ``measure``: ``combined`` (distance in units of what the model
    expected, and whether another action explains it better) or ``distance``.
    """

    surprise: float
    threshold: float | None
    surprising: bool
    calibrated: bool
    measure: Literal["combined", "distance"]
    timestamp: float


class ModelResponse(BaseModel):
    """The model card; ``null`` where its folder does not say."""

    model_config = ConfigDict(protected_namespaces=())
    name: str | None
    version: str | None
    alias: str | None
    model_variant: str
    data_revision: str | None
    commit: str | None
    profile: str | None
    weights_sha256: str | None
    gate: dict[str, Any] | None
    vocabulary: list[str] | None
    recordings: dict[str, list[str]] | None
    latent_dim: int
    patches: int
    image_size: list[int] = Field(description="Height, width")
    aug_dim: int = Field(description="Numbers of an action vector")
    augmentation_dim: int = Field(description="Those of them that describe an augmentation")
    history: int = Field(description="Earlier frames that a prediction can attend to")
    latent_scale: float | None = Field(description="Distance x scale = surprise")
    surprise_threshold: float | None
    streams: list[str] = Field(description="Variants behind /encode_dual; empty without")
    stream_models: dict[str, dict[str, Any]]
    generative: dict[str, Any] | None = Field(description="Behind /reconstruct and /dream")
    embodied: dict[str, Any] | None = Field(description="Behind /imagine and /intention")
    device: str
    precision: str


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

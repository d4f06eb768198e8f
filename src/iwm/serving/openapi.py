"""OpenAPI with the loaded model's own sizes and words, and an example for every call."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from iwm.serving import imagery, intentions, messages
from iwm.serving.examples import Examples
from iwm.serving.wire import ErrorResponse

if TYPE_CHECKING:
    from fastapi import FastAPI

    from iwm.serving.config import Limits
    from iwm.serving.runtime import Runtime

DESCRIPTION = (
    "An image world model: encode frames, predict and roll out latents, plan, notice surprise; "
    "reconstruct images and dream frames, where a generative model stands beside it; imagine "
    "futures of states and pass intentions between agents, where a world model of states does. "
    "Every refusal is one JSON object whose `detail` names the field and what was expected."
)
REFERENCE = "#/components/schemas/{model}"
PATCH_CALLS = ("encode", "encode_dual")
IMAGE_CALLS = (*PATCH_CALLS, "reconstruct")
REQUESTS: dict[str, type[BaseModel]] = {
    "encode": messages.EncodeRequest,
    "predict": messages.PredictRequest,
    "rollout": messages.RolloutRequest,
    "encode_dual": messages.EncodeRequest,
    "plan": messages.PlanRequest,
    "surprise": messages.SurpriseRequest,
    "reconstruct": imagery.ReconstructRequest,
    "dream": imagery.DreamRequest,
    "imagine": intentions.ImagineRequest,
    "intention": intentions.IntentionRequest,
}
RESPONSES: dict[str, type[BaseModel]] = {
    "encode": messages.EncodeResponse,
    "predict": messages.PredictResponse,
    "rollout": messages.RolloutResponse,
    "encode_dual": messages.DualResponse,
    "plan": messages.PlanResponse,
    "surprise": messages.SurpriseResponse,
    "reconstruct": imagery.ReconstructResponse,
    "dream": imagery.DreamResponse,
    "imagine": intentions.ImagineResponse,
    "intention": intentions.IntentionResponse,
}
REFUSALS = (400, 401, 403, 404, 408, 413, 422, 503)


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route may answer beside 200."""
    return {status: {"model": ErrorResponse} for status in statuses}


def call(name: str) -> dict[str, Any]:
    """Arguments of the route of a call, which reads its body itself."""
    return {
        "response_model": RESPONSES[name],
        "responses": refusals(*REFUSALS),
        "summary": (REQUESTS[name].__doc__ or "").strip().splitlines()[0],
    }


class Document:
    """The schema of what runs now: made once for each set of models."""

    def __init__(self, app: FastAPI, runtime: Runtime) -> None:
        self._app, self._runtime = app, runtime
        self._made: tuple[Any, dict[str, Any]] | None = None

    def __call__(self) -> dict[str, Any]:
        """The document."""
        models = self._runtime.models
        if models is None:
            return self._build()
        if self._made is None or self._made[0]() is not models:
            # A weak reference: a document must not keep replaced models alive.
            self._made = weakref.ref(models), self._build()
        return self._made[1]

    def _build(self) -> dict[str, Any]:
        from fastapi.openapi.utils import get_openapi

        document = get_openapi(
            title=self._app.title,
            version=self._app.version,
            description=DESCRIPTION,
            routes=self._app.routes,
        )
        engine = self._runtime.engine
        examples = Examples.of(self._runtime.models)
        schemas = document["components"]["schemas"]
        _, requests = models_json_schema(
            [(model, "validation") for model in dict.fromkeys(REQUESTS.values())],
            ref_template=REFERENCE,
        )
        schemas |= requests["$defs"]
        if engine is not None:
            _fit(schemas, engine.latent_dim, engine.patches, engine.aug_dim)
        _bound(schemas, self._runtime.config.limits)
        if (models := self._runtime.models) and models.dreamer:
            for images in _arrays(schemas["DreamRequest"]["properties"]["images_b64"]):
                images["maxItems"] = models.dreamer.context
        if models and models.imaginer:
            intentions.fit(schemas, models.imaginer)
        for name in REQUESTS:
            operation = document["paths"][f"/{name}"]["post"]
            operation["requestBody"] = _body(name, examples)
            _answer(operation, examples.answers[name])
            if name == "encode":
                _npy(operation)
            if name in PATCH_CALLS:
                operation["parameters"] = [_RETURN_PATCHES]
        for path in ("/health", "/model"):
            _answer(document["paths"][path]["get"], examples.answers[path[1:]])
        if self._runtime.config.token:
            scheme = {"type": "http", "scheme": "bearer"}
            document["components"]["securitySchemes"] = {"bearer": scheme}
            document["security"] = [{"bearer": []}]
        return document


_RETURN_PATCHES = {
    "name": "return_patches",
    "in": "query",
    "description": "With an image as the body: whether to answer patches too",
    "schema": {"type": "boolean", "default": False},
}


def _body(name: str, examples: Examples) -> dict[str, Any]:
    reference = REFERENCE.format(model=REQUESTS[name].__name__)
    content: dict[str, Any] = {
        "application/json": {
            "schema": {"$ref": reference},
            "examples": {word: {"value": value} for word, value in examples.requests[name].items()},
        }
    }
    if name in IMAGE_CALLS:
        image = {"schema": {"type": "string", "format": "binary"}}
        content |= {"image/png": image, "image/jpeg": image}
    return {"required": True, "content": content}


def _answer(operation: dict[str, Any], example: Any) -> None:
    operation["responses"]["200"]["content"]["application/json"]["example"] = example


def _npy(operation: dict[str, Any]) -> None:
    binary = {"schema": {"type": "string", "format": "binary"}}
    content = operation["responses"]["200"]["content"]
    content |= {"application/x-npy": binary, "application/octet-stream": binary}


_LATENTS = ("z_cls", "goal_z_cls", "z_cls_prev")
_ACTIONS = ("aug_params", "aug_seq")


def _fit(schemas: dict[str, Any], width: int, patches: int, aug_dim: int) -> None:
    """The loaded model's own lengths, in the requests."""
    for name in {model.__name__ for model in REQUESTS.values()} | {"HistoryRequest"}:
        for field, schema in schemas[name]["properties"].items():
            for array in _arrays(schema):
                rows = array["items"] if array["items"].get("type") == "array" else None
                if field in _LATENTS:
                    (rows or array).update(minItems=width, maxItems=width)
                elif field == "z_patches" and rows is not None:
                    array.update(minItems=patches, maxItems=patches)
                    rows.update(minItems=width, maxItems=width)
                elif field in _ACTIONS:
                    (rows or array).update(maxItems=aug_dim)


def _arrays(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in (schema, *schema.get("anyOf", ())) if one.get("type") == "array"]


def _bound(schemas: dict[str, Any], limits: Limits) -> None:
    """The service's own bounds."""
    plan = schemas["PlanRequest"]["properties"]
    plan["horizon"]["maximum"] = limits.max_plan_horizon
    plan["candidates"]["maximum"] = limits.max_plan_candidates
    plan["iterations"]["maximum"] = limits.max_plan_iterations
    schemas["DreamRequest"]["properties"]["actions"]["maxItems"] = limits.max_dream_steps
    imagine = schemas["ImagineRequest"]["properties"]
    imagine["rollouts"]["maximum"] = limits.max_imagined
    for field in ("aug_seq", "actions"):
        for array in _arrays(schemas["RolloutRequest"]["properties"][field]):
            array["maxItems"] = limits.max_steps

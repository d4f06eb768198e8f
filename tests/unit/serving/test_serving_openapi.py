"""The documentation is true: its examples are answered, its schemas hold, its sizes fit."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from tinydreams import CONTEXT, tiny_dreams
from tinyembodied import write_embodied
from tinymodel import WIDTH, write_action_model, write_model

from iwm.serving.app import Runtime, create_app
from iwm.serving.config import ServiceConfig, service_config
from iwm.serving.dreaming import Dreamer
from iwm.serving.embodied import load_imaginer
from iwm.serving.engine import Engine
from iwm.serving.runtime import CALLS


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    root = tmp_path_factory.mktemp("models")
    streams = {
        name: Engine.load(write_model(root / name, seed), "cpu")
        for seed, name in enumerate(("invariant", "equivariant"))
    }
    engine = Engine.load(write_action_model(root / "action"), "cpu")
    imaginer = load_imaginer(write_embodied(root / "embodied"), "cpu")
    return Runtime(ServiceConfig(), engine, streams, Dreamer(tiny_dreams(), "cpu"), imaginer)


def asked(runtime: Runtime, calls: list[tuple[str, str, Any]]) -> list[httpx.Response]:
    async def scenario() -> list[httpx.Response]:
        transport = httpx.ASGITransport(create_app(runtime.config, runtime))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return [await http.request(how, path, json=body) for how, path, body in calls]

    return asyncio.run(scenario())


def document(runtime: Runtime) -> Any:
    return asked(runtime, [("GET", "/openapi.json", None)])[0].json()


def check(document: Any, schema: Any, value: Any) -> None:
    registry: Any = Registry().with_resource("urn:doc", Resource.opaque(document))
    text = {"$ref": f"urn:doc{schema['$ref']}"} if "$ref" in schema else schema
    Draft202012Validator(text, registry=registry).validate(value)


def json_of(content: Any) -> Any:
    return content["content"]["application/json"]


def test_every_example_is_answered_and_holds_its_schema(runtime: Runtime) -> None:
    described = document(runtime)
    calls, expected = [], []
    for name in CALLS:
        operation = described["paths"][f"/{name}"]["post"]
        request, answer = json_of(operation["requestBody"]), json_of(operation["responses"]["200"])
        check(described, answer["schema"], answer["example"])
        assert request["examples"]
        for example in request["examples"].values():
            check(described, request["schema"], example["value"])
            calls.append(("POST", f"/{name}", example["value"]))
            expected.append(answer)
    for path in ("/health", "/model"):
        answer = json_of(described["paths"][path]["get"]["responses"]["200"])
        check(described, answer["schema"], answer["example"])
        calls.append(("GET", path, None))
        expected.append(answer)
    for call, got, answer in zip(calls, asked(runtime, calls), expected, strict=True):
        assert got.status_code == 200, (call[1], got.text)
        check(described, answer["schema"], got.json())
        assert set(got.json()) == set(answer["example"])


def test_sizes_are_the_models_own(runtime: Runtime) -> None:
    described = document(runtime)
    plan = described["components"]["schemas"]["PlanRequest"]["properties"]
    assert (plan["z_cls"]["minItems"], plan["z_cls"]["maxItems"]) == (WIDTH, WIDTH)
    assert plan["horizon"]["maximum"] == runtime.config.limits.max_plan_horizon
    dream = described["components"]["schemas"]["DreamRequest"]["properties"]
    assert dream["actions"]["maxItems"] == runtime.config.limits.max_dream_steps
    assert dream["images_b64"]["anyOf"][0]["maxItems"] == CONTEXT
    without = document(Runtime(ServiceConfig()))
    assert without["components"]["schemas"]["PlanRequest"]["properties"]["z_cls"]["minItems"] == 1


def test_no_reference_dangles(runtime: Runtime) -> None:
    described = document(runtime)
    schemas = described["components"]["schemas"]

    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            return own + [one for part in value.values() for one in references(part)]
        return (
            [one for part in value for one in references(part)] if isinstance(value, list) else []
        )

    assert {one.rpartition("/")[2] for one in references(described)} <= set(schemas)


def test_a_token_is_documented_where_one_is_wanted(runtime: Runtime) -> None:
    assert "security" not in document(runtime)
    locked = document(Runtime(ServiceConfig(token="secret")))
    assert locked["security"] == [{"bearer": []}]


def test_metrics_count_answers_and_their_latency(runtime: Runtime) -> None:
    fresh = Runtime(runtime.config, runtime.engine)
    z_cls = [0.1] * WIDTH
    answers = asked(
        fresh,
        [
            ("POST", "/predict", {"z_cls": z_cls, "action": "attack"}),
            ("POST", "/predict", {"z_cls": z_cls, "action": "fly"}),
            ("POST", "/plan", {"z_cls": z_cls, "goal_z_cls": z_cls, "horizon": 2}),
            ("GET", "/metrics", None),
        ],
    )
    text = answers[-1].text
    for line in (
        'iwm_served_total{call="predict"} 1',
        'iwm_served_total{call="plan"} 1',
        'iwm_served_total{call="surprise"} 0',
        'iwm_answers_total{call="predict",status="422"} 1',
        'iwm_latency_seconds_count{call="predict"} 1',
        'iwm_latency_seconds_bucket{call="plan",le="+Inf"} 1',
        "iwm_model_loaded 1",
    ):
        assert line in text.splitlines()
    buckets = [
        int(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith('iwm_latency_seconds_bucket{call="predict"')
    ]
    assert buckets == sorted(buckets)
    fresh.close()


def test_other_origins_are_let_in_only_by_name(runtime: Runtime) -> None:
    config = service_config({"IWM_CORS_ORIGINS": "https://a.example, https://b.example"})
    assert config.cors_origins == ("https://a.example", "https://b.example")

    def origin_of(config: ServiceConfig, origin: str) -> str | None:
        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(create_app(config, Runtime(config)))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                return await http.get("/health", headers={"Origin": origin})

        headers = asyncio.run(call()).headers
        assert "access-control-allow-credentials" not in headers
        return headers.get("access-control-allow-origin")

    assert origin_of(config, "https://b.example") == "https://b.example"
    assert origin_of(config, "https://c.example") is None
    assert origin_of(ServiceConfig(), "https://a.example") is None


def test_paths_are_the_services(runtime: Runtime) -> None:
    paths = set(document(runtime)["paths"])
    assert paths == {f"/{name}" for name in CALLS} | {"/health", "/model", "/metrics"}

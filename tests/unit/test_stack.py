"""Versions that must fit together: what breaks first when a bound is loosened."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import Body, FastAPI
from fastapi.testclient import TestClient


def test_fastapi_lets_null_stand_for_a_default() -> None:
    """From 0.151 it answers 422, and `prefect deploy` with it."""
    app = FastAPI()

    @app.post("/")
    def call(limit: int = Body(200, embed=True)) -> int | None:
        return limit

    assert TestClient(app).post("/", json={"limit": None}).status_code == 200


def test_prefects_server_imports() -> None:
    import prefect.server.api.server  # noqa: F401


def test_bentoml_is_not_an_ancient_one() -> None:
    assert tuple(int(part) for part in version("bentoml").split(".")[:2]) >= (1, 4)

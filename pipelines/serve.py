"""`iwm serve` and `iwm health`: start the inference service, ask how it is."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines._stage import quiet

LOOPBACK = "127.0.0.1"


def serve(
    bento: Annotated[str, typer.Argument(help="Bento to serve.")] = "iwm:latest",
    model_path: Annotated[
        Path | None,
        typer.Option(envvar="IWM_MODEL_PATH", help="A model folder to serve instead of a Bento's."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A ready-made model to serve (`iwm models` lists them), or `random`: untrained "
            "ones, to write clients against."
        ),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(
            envvar="IWM_MODEL_VARIANT",
            help="Which of several models answers: action, core, invariant, equivariant.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(envvar="IWM_SERVICE_HOST", help="Address to bind.")
    ] = LOOPBACK,
    port: Annotated[
        int, typer.Option(envvar="IWM_SERVICE_PORT", min=1, max=65535, help="Port.")
    ] = 8001,
    device: Annotated[
        str, typer.Option(envvar="IWM_DEVICE", help="auto, cpu, cuda, cuda:1 ...")
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(envvar="IWM_PRECISION", help="float32, or bfloat16 where it is faster."),
    ] = "float32",
    poll: Annotated[
        float,
        typer.Option(
            envvar="IWM_REGISTRY_POLL_S",
            min=0,
            help="Seconds between two looks whether the registry's champion moved; 0: never.",
        ),
    ] = 0.0,
) -> None:
    """Serve a Bento, a ready-made model or a model folder, in the foreground."""
    from iwm import zoo
    from iwm.errors import ServiceError
    from iwm.serving.config import RANDOM

    quiet()
    os.environ["IWM_DEVICE"] = device
    os.environ["IWM_SERVICE_HOST"], os.environ["IWM_SERVICE_PORT"] = host, str(port)
    os.environ["IWM_PRECISION"], os.environ["IWM_REGISTRY_POLL_S"] = precision, str(poll)
    if variant is not None:
        os.environ["IWM_MODEL_VARIANT"] = variant
    if RANDOM in (model, str(model_path)):
        os.environ["IWM_MODEL_PATH"], bento = RANDOM, "bentos.iwm:IWM"
    elif model is not None or model_path is not None:
        folder = zoo.path(model) if model is not None else model_path
        if folder is None or not folder.is_dir():
            raise ServiceError(f"{folder}: no such model folder")
        os.environ["IWM_MODEL_PATH"] = str(folder.resolve())
        bento = "bentos.iwm:IWM"
    sys.stdout.flush()
    arguments = ["serve", bento, "--host", host, "--port", str(port)]
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", *arguments])


def health(
    url: Annotated[str, typer.Option(help="Where the service is.")] = "http://127.0.0.1:8001",
) -> None:
    """Print the service's health as JSON; exit code 1 when it cannot serve."""
    import json

    from iwm.client import SyncIWMClient

    with SyncIWMClient(url, timeout=5.0) as client:
        answer = client.health()
    typer.echo(json.dumps(answer, indent=2))
    if answer.get("status") != "ok":
        raise typer.Exit(1)

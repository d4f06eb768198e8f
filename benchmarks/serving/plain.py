"""A plain FastAPI application that does what the older service did.

    python -m benchmarks.serving.plain MODEL_FOLDER PORT

PIL and torchvision transforms, one image at a time, pydantic lists in and out; ``/predict`` and
``/rollout`` without patches fill in zeros for every patch token and push them through all layers.
The weights, the torch threads and the event loop are those of the other subjects.
"""

from __future__ import annotations

import base64
import io
import sys
import time
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image
from pydantic import BaseModel
from torchvision import transforms

from iwm.serving.engine import Engine


class EncodeBody(BaseModel):
    """An image."""

    image_b64: str
    return_patches: bool = False


class PredictBody(BaseModel):
    """One step."""

    z_cls: list[float]
    z_patches: list[list[float]] | None = None
    aug_params: list[float]


class RolloutBody(BaseModel):
    """k steps."""

    z_cls: list[float]
    z_patches: list[list[float]] | None = None
    aug_seq: list[list[float]]


def application(folder: Path) -> FastAPI:
    """The application over the model in ``folder``."""
    engine = Engine.load(folder, "cpu")
    model, size = engine.model, engine.preprocess.size
    prepare = transforms.Compose(
        [
            transforms.Resize(min(size), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            transforms.ToTensor(),  # normalising is the model's own first step
        ]
    )
    app = FastAPI()

    def step(z_cls: torch.Tensor, action: list[float], patches: torch.Tensor | None) -> Any:
        if patches is None:
            patches = torch.zeros(1, engine.patches, engine.latent_dim)
        vector = torch.zeros(1, engine.aug_dim)
        vector[0, : len(action)] = torch.tensor(action)
        return model.predict(z_cls, vector, patches)

    @app.post("/encode")
    async def encode(body: EncodeBody) -> dict[str, Any]:
        image = Image.open(io.BytesIO(base64.b64decode(body.image_b64))).convert("RGB")
        with torch.no_grad():
            z_cls, z_patches = model.encode(prepare(image).unsqueeze(0))
        return {
            "z_cls": z_cls[0].tolist(),
            "z_patches": z_patches[0].tolist() if body.return_patches else None,
            "timestamp": time.time(),
        }

    @app.post("/predict")
    async def predict(body: PredictBody) -> dict[str, Any]:
        patches = None if body.z_patches is None else torch.tensor([body.z_patches])
        with torch.no_grad():
            made = step(torch.tensor([body.z_cls]), body.aug_params, patches)
        return {"z_cls_pred": made.z_cls[0].tolist(), "timestamp": time.time()}

    @app.post("/rollout")
    async def rollout(body: RolloutBody) -> dict[str, Any]:
        patches = None if body.z_patches is None else torch.tensor([body.z_patches])
        z_cls, sequence = torch.tensor([body.z_cls]), []
        with torch.no_grad():
            for action in body.aug_seq:
                made = step(z_cls, action, patches)
                z_cls, patches = made.z_cls, made.z_patches
                sequence.append(z_cls[0].tolist())
        return {"z_cls_seq": sequence, "timestamp": time.time()}

    return app


if __name__ == "__main__":
    uvicorn.run(
        application(Path(sys.argv[1])),
        host="127.0.0.1",
        port=int(sys.argv[2]),
        log_level="error",
        access_log=False,
    )

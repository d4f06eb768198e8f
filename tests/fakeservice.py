"""A service of a toy world for tests of clients and agents, behind httpx's mock transport.

The world is a plane; a picture's first pixel tells where it was taken: z_cls = (red, green).
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import numpy as np
import orjson
from PIL import Image

MOVES = {"noop": (0, 0), "right": (1, 0), "left": (-1, 0), "up": (0, 1), "down": (0, -1)}
SCALE = 0.5
NOW = 1_700_000_000.0


def picture(x: int, y: int) -> np.ndarray[Any, Any]:
    """What is seen at a place: uint8 [4, 4, 3]."""
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 0], image[..., 1] = x, y
    return image


class Refusal(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


class FakeService:
    """Answers like the service; what it should do wrong is set on it.

    ``away``: refuse connections. ``broken``: paths that answer 404. ``mrr``: the confidence in
    every prediction. ``named``: whether actions have names. ``asked``: (path, body) so far.
    """

    def __init__(self, moves: Mapping[str, tuple[int, int]] = MOVES) -> None:
        self.moves = moves
        self.away, self.named, self.mrr = False, True, 0.9
        self.broken: set[str] = set()
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """The handler of a mock transport."""
        if self.away:
            raise httpx.ConnectError("refused")
        path, kind = request.url.path, request.headers.get("content-type", "")
        body: dict[str, Any] = {}
        if kind.startswith("image/"):
            body = {"image_b64": base64.b64encode(request.content).decode()}
        elif request.content:
            body = orjson.loads(request.content)
        self.asked.append((path, body))
        routes: dict[str, Callable[[dict[str, Any]], Any]] = {
            "/health": lambda _: {"status": "ok", "model_loaded": True},
            "/model": lambda _: self.card(),
            "/encode": self.encode,
            "/encode_dual": self.encode_dual,
            "/predict": self.predict,
            "/rollout": self.rollout,
            "/surprise": self.surprise,
            "/plan": self.plan,
        }
        try:
            if path in self.broken:
                raise Refusal(404, "broken")
            answer = routes[path](body)
        except Refusal as refusal:
            return httpx.Response(refusal.status, json={"detail": refusal.detail})
        return httpx.Response(200, content=orjson.dumps(answer))

    def count(self, path: str) -> int:
        """How often a path was asked."""
        return sum(asked == path for asked, _ in self.asked)

    def card(self) -> dict[str, Any]:
        """``GET /model``."""
        return {
            "name": "plane",
            "version": 3,
            "alias": "champion",
            "data_revision": "abc",
            "commit": "def",
            "gate": {"passed": True},
            "vocabulary": list(self.moves) if self.named else None,
            "latent_dim": 2,
            "latent_scale": SCALE,
            "model_variant": "action",
            "history": 3,
            "image_size": [4, 4],
            "streams": ["action"],
        }

    @staticmethod
    def _see(body: dict[str, Any]) -> list[float]:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(body["image_b64"]))))
        return [float(value) for value in pixels[0, 0, :2]]

    def _move(self, z: list[float], action: str | None) -> list[float]:
        if action is None:
            return z
        if not self.named or action not in self.moves:
            known = ", ".join(self.moves)
            raise Refusal(422, f"action: expected one of {known}, given {action!r}")
        return [z[0] + self.moves[action][0], z[1] + self.moves[action][1]]

    def encode(self, body: dict[str, Any]) -> dict[str, Any]:
        """Where the picture was taken."""
        return {
            "z_cls": self._see(body),
            "z_patches": None,
            "timestamp": NOW + self.count("/encode"),
            "latent_dim": 2,
            "model_variant": "action",
        }

    def encode_dual(self, body: dict[str, Any]) -> dict[str, Any]:
        """The place, and its double."""
        z = self._see(body)
        return {
            "semantic": z,
            "equivariant": [2 * value for value in z],
            "semantic_patches": None,
            "equivariant_patches": None,
            "semantic_variant": "invariant",
            "equivariant_variant": "equivariant",
            "timestamp": NOW,
        }

    def predict(self, body: dict[str, Any]) -> dict[str, Any]:
        """One step."""
        return {
            "z_cls_pred": self._move(body["z_cls"], body.get("action")),
            "z_patches_pred": None,
            "mrr": self.mrr,
            "uncertainty": 0.1,
            "timestamp": NOW,
        }

    def _walk(self, z: list[float], actions: list[str]) -> list[list[float]]:
        places = []
        for action in actions:
            z = self._move(z, action)
            places.append(z)
        return places

    def rollout(self, body: dict[str, Any]) -> dict[str, Any]:
        """Step by step."""
        names = body.get("actions") or [None] * len(body["aug_seq"])
        return {
            "z_cls_seq": self._walk(body["z_cls"], names),
            "z_patches_seq": None,
            "mrr_seq": [self.mrr] * len(names),
            "uncertainty_seq": [0.1] * len(names),
            "timestamp": NOW,
        }

    def surprise(self, body: dict[str, Any]) -> dict[str, Any]:
        """Distance to the prediction."""
        expected = self._move(body["z_cls_prev"], body.get("action"))
        distance = math.dist(expected, body.get("z_cls") or self._see(body)) * SCALE
        return {
            "surprise": distance,
            "threshold": 2.0,
            "surprising": distance > 2.0,
            "calibrated": True,
            "measure": "distance",
            "timestamp": NOW,
        }

    def plan(self, body: dict[str, Any]) -> dict[str, Any]:
        """Straight to the goal; ``scoring`` walks right."""
        z = body["z_cls"]
        goal = body.get("goal_z_cls")
        if "goal_image_b64" in body:
            goal = self._see({"image_b64": body["goal_image_b64"]})
        if goal is None:
            goal = [z[0] + 1e6, z[1]]
        names = []
        place = z
        for _ in range(body["horizon"]):
            names.append(min(self.moves, key=lambda name: math.dist(self._move(place, name), goal)))
            place = self._move(place, names[-1])
        return {
            "actions": names,
            "score": -math.dist(place, goal),
            "runners_up": [{"actions": ["noop"] * len(names), "score": -math.dist(z, goal)}],
            "z_cls_seq": self._walk(z, names),
            "uncertainty_seq": [0.1] * len(names),
            "milliseconds": 1.0,
            "timestamp": NOW,
        }

"""The requests that a packaged model must answer before the package counts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from iwm.client import SyncIWMClient


def timed(call: Callable[[], Any], times: int) -> tuple[Any, float]:
    """The last answer, and the median of the wall-clock times in ms."""
    elapsed = []
    for _ in range(times):
        started = time.perf_counter()
        answer = call()
        elapsed.append(1000 * (time.perf_counter() - started))
    return answer, round(statistics.median(elapsed), 3)


def query(client: SyncIWMClient, image: npt.NDArray[np.uint8], times: int) -> dict[str, Any]:
    """Ask every endpoint, check what comes back; returns the latencies.

    Raises:
        ServiceError: an answer is not what it must be.
    """
    import numpy as np

    card = client.model()
    asked = 1
    checks: dict[str, Any] = {}
    latency: dict[str, float] = {}
    encoded, latency["encode"] = timed(lambda: client.encode_image(image, True), times)
    predicted, latency["predict"] = timed(lambda: client.predict_next(encoded.z_cls, [0.0]), times)
    rolled, latency["rollout"] = timed(lambda: client.rollout(encoded.z_cls, [[0.0]] * 5), times)
    surprised, latency["surprise"] = timed(
        lambda: client.surprise(encoded.z_cls, encoded.z_cls, aug_params=[0.0]), times
    )
    health = client.health()
    asked += 4 * times + 1
    width = encoded.latent_dim
    checks |= {
        "/encode: z_cls": encoded.z_cls.shape == (width,) and np.isfinite(encoded.z_cls).all(),
        "/encode: z_patches": encoded.z_patches.shape[1:] == (width,),
        "/encode: a latent of a picture is not constant": encoded.z_cls.std() > 0,
        "/predict: z_cls_pred": predicted.z_cls_pred.shape == (width,)
        and np.isfinite(predicted.z_cls_pred).all(),
        "/predict: mrr in [0, 1]": 0.0 <= predicted.mrr <= 1.0,
        "/predict: uncertainty": predicted.uncertainty >= 0.0,
        "/rollout: z_cls_seq": rolled.z_cls_seq.shape == (5, width),
        "/rollout: its first step is /predict": np.allclose(
            rolled.z_cls_seq[0], predicted.z_cls_pred, atol=1e-3
        ),
        "/surprise: calibrated": surprised.calibrated and surprised.surprise >= 0.0,
        "/model: latent_dim": card.latent_dim == width,
        "/health: counters": [health.get(f"total_{name}s") for name in ("encode", "predict")]
        == [times, times],
    }
    if card.vocabulary:
        plan, latency["plan"] = timed(lambda: client.plan(encoded.z_cls, encoded.z_cls), times)
        asked += times
        checks["/plan: actions"] = set(plan.actions) <= set(card.vocabulary)
        checks["/plan: scores fall"] = all(plan.score >= one.score for one in plan.runners_up)
        checks["/plan: z_cls_seq"] = plan.z_cls_seq.shape == (len(plan.actions), width)
    if card.streams:
        dual, latency["encode_dual"] = timed(lambda: client.encode_dual(image), times)
        asked += times
        both = (dual.semantic, dual.equivariant)
        checks["/encode_dual: both"] = all(one.std() > 0 for one in both)
    if card.generative:
        back, latency["reconstruct"] = timed(lambda: client.reconstruct(image), times)
        names = list(card.generative["vocabulary"])
        dream, latency["dream"] = timed(lambda: client.dream([image], names), times)
        asked += 2 * times
        height, width = card.generative["image_size"]
        checks["/reconstruct: image"] = back.image.shape == (height, width, 3)
        checks["/reconstruct: it is like the picture"] = back.psnr > 10.0
        checks["/dream: frames"] = dream.frames.shape == (len(names), height, width, 3)
        checks["/dream: actions"] = list(dream.actions) == names
    return {
        "requests": asked,
        "checks": _checked(checks),
        "p50_ms": latency,
        "mrr": round(predicted.mrr, 4),
        "uncertainty": round(predicted.uncertainty, 4),
    }


def _checked(checks: dict[str, Any]) -> int:
    from iwm.errors import ServiceError

    for what, holds in checks.items():
        if not holds:
            raise ServiceError(f"the packaged model failed its smoke request: {what}")
    return len(checks)

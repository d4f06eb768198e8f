"""Mutated images and bodies: refused or answered, never an error, and nothing stays behind."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from PIL import Image
from servicetools import resident
from tinymodel import WIDTH

from pipelines._served import Served

Request = tuple[str, bytes, str]
JSON = "application/json"
WORDS = (
    *(b"null", b"true", b"-1", b"0", b"1e308", b"1e-999", b"NaN", b"Infinity", b"9" * 40),
    *(b'""', b'"\\ud800"', b"[]", b"{}", b"[[[]]]", b"\x00", b"\xff\xfe", b'"image_b64":'),
    *(b"[" * 2000, b'{"a":' * 500, b'"' + b"A" * 5000 + b'"'),
)


def pictures() -> list[tuple[bytes, str]]:
    """A photo-like picture in each way that it can be written."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    found = []
    for kind, settings in (
        ("PNG", {}),
        ("JPEG", {"quality": 85}),
        ("JPEG", {"progressive": True, "quality": 60}),
        ("PNG", {"mode": "P"}),
        ("PNG", {"mode": "I;16"}),
        ("JPEG", {"mode": "CMYK"}),
    ):
        options = dict(settings)
        mode = options.pop("mode", "RGB")
        image = Image.fromarray(pixels)
        if mode == "I;16":
            image = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
        elif mode != "RGB":
            image = image.convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        found.append((buffer.getvalue(), f"image/{kind.lower()}"))
    return found


def bodies() -> list[tuple[str, bytes]]:
    """A right body for every call."""
    latent = np.linspace(-1, 1, WIDTH).tolist()
    image = base64.b64encode(pictures()[0][0]).decode()
    past = {"z_cls": [latent, latent], "actions": ["noop", None]}
    calls = {
        "/encode": {"image_b64": image, "return_patches": True},
        "/encode_dual": {"image_b64": image},
        "/predict": {"z_cls": latent, "action": "turn_left", "history": past},
        "/rollout": {"z_cls": latent, "aug_seq": [[0.5, 0.3]] * 5},
        "/plan": {"z_cls": latent, "goal_z_cls": latent, "candidates": 8, "iterations": 2},
        "/surprise": {"z_cls_prev": latent, "action": "attack", "z_cls": latent},
        "/reconstruct": {"image_b64": image},
        "/imagine": {"state": [0.1] * 6, "target": [1, None, 0, 0, 0, 0], "horizon": 3},
        "/intention": {
            **{"agent": "red", "round": 1, "room": "fuzz", "trajectory": [[0.1] * 6] * 3},
            **{"goal": "flag", "confidence": 0.5, "agents": ["blue"], "wait_ms": 1},
        },
        "/dream": {"images_b64": [image] * 2, "past_actions": ["noop"], "actions": ["attack"] * 3},
    }
    return [(path, json.dumps(body).encode()) for path, body in calls.items()]


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four changes: bytes, bits, a cut, a part twice, a part elsewhere, a hostile word."""
    held = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if not held:
            break
        at, end = sorted(int(place) for place in rng.integers(0, len(held) + 1, 2))
        match int(rng.integers(6)):
            case 0:
                held[at:end] = rng.bytes(min(end - at, 16))
            case 1:
                place = min(at, len(held) - 1)
                held[place] ^= 1 << int(rng.integers(8))
            case 2:
                del held[at:end]
            case 3:
                held[at:at] = held[at:end][:4096]
            case 4:
                held[at : at + 8] = held[end : end + 8]
            case _:
                word = WORDS[int(rng.integers(len(WORDS)))]
                held[at : at + int(rng.integers(0, 12))] = word
    return bytes(held)


def requests(count: int, seed: int) -> Iterator[Request]:
    """Half of them bodies of every call, half images, sent as they are or in base64."""
    rng = np.random.default_rng(seed)
    images, right = pictures(), bodies()
    for turn in range(count):
        if turn % 2:
            path, body = right[turn // 2 % len(right)]
            yield path, mutated(body, rng), JSON
            continue
        data, kind = images[turn // 2 % len(images)]
        changed = mutated(data, rng)
        if turn % 4:
            yield "/encode", changed, kind
        else:
            text = base64.b64encode(changed).decode()
            yield "/encode", json.dumps({"image_b64": text}).encode(), JSON


def send(service: Served, count: int, seed: int) -> Counter[int]:
    """Statuses; every refusal has the one shape."""
    statuses: Counter[int] = Counter()
    with httpx.Client(base_url=service.url, timeout=60) as client:
        for path, body, kind in requests(count, seed):
            answer = client.post(path, content=body, headers={"Content-Type": kind})
            statuses[answer.status_code] += 1
            assert answer.status_code == 200 or 400 <= answer.status_code < 500, (
                f"{path}: {answer.status_code}: {answer.text[:300]}\n{kind}: {body[:2000]!r}"
            )
            if answer.status_code != 200:
                assert set(answer.json()) == {"detail"}, answer.text[:300]
    print(f"fuzz: {dict(statuses)}")
    return statuses


def test_a_hundred_mutations(whole: Served) -> None:
    statuses = send(whole, 100, 1)
    assert statuses[422]
    assert statuses[400]


@pytest.mark.slow
def test_a_thousand_mutations_leave_nothing_behind(whole: Served) -> None:
    send(whole, 300, 2)
    before = resident(whole)
    send(whole, 1000, 3)
    after = resident(whole)
    print(f"fuzz: {before / 2**20:.1f} MiB before, {after / 2**20:.1f} after")
    assert after < 1.02 * before

"""`iwm serve --model NAME`, really started: a ready-made model answers by name."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tinymodel import VOCABULARY, WIDTH, write_action_model

from iwm.client import Earlier, SyncIWMClient
from iwm.errors import ServiceError
from iwm.files import write_json
from pipelines._served import free_port, stop

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyncIWMClient]:
    folder = tmp_path_factory.mktemp("ready-made")
    write_action_model(folder / "zoo/walk-tiny")
    write_json(folder / "zoo/walk-tiny/card.json", {"model": "walk-tiny", "phase": "action"})
    kept = {name: value for name, value in os.environ.items() if not name.startswith("IWM_")}
    port = free_port()
    command = [Path(sys.executable).with_name("iwm"), "serve", "--model", "walk-tiny"]
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--device", "cpu"],
            cwd=folder,
            env={**kept, "IWM_ZOO": str(folder / "zoo"), "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        with SyncIWMClient(f"http://127.0.0.1:{port}") as found:
            while found.health()["status"] != "ok":
                said = (folder / "serve.log").read_text(errors="replace")
                assert process.poll() is None, said
                time.sleep(0.2)
            yield found
    finally:
        stop(process)


def test_it_serves_the_model_that_was_named(client: SyncIWMClient) -> None:
    card = client._http.get("/model").json()
    assert (card["name"], card["model_variant"]) == ("walk-tiny", "action")
    assert card["vocabulary"] == list(VOCABULARY)


def test_an_agent_imagines_by_name(client: SyncIWMClient) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), np.uint8)
    before, now = (client.encode_image(image).z_cls for image in pixels)
    past = Earlier([before], ["turn_left"])
    rolled = client.rollout(now, actions=["move_forward", "wait"], history=past)
    assert rolled.z_cls_seq.shape == (2, WIDTH)
    step = client.predict_next(now, action="move_forward", history=past)
    np.testing.assert_allclose(step.z_cls_pred, rolled.z_cls_seq[0], atol=1e-4)
    other = client.predict_next(now, action="attack", history=past)
    assert np.abs(other.z_cls_pred - step.z_cls_pred).max() > 1e-4
    np.testing.assert_allclose(
        client.predict_next(now, [0.0, 0.5]).z_cls_pred,
        client.rollout(now, [[0.0, 0.5]]).z_cls_seq[0],
        atol=1e-4,
    )
    with pytest.raises(ServiceError, match=r"422: action: expected one of noop, .*given 'fly'"):
        client.predict_next(now, action="fly")

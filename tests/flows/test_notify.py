"""The notification hook against a real web server on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import toy

from flows import notify


class Webhook(HTTPServer):
    """Keeps what it is sent; the first ``refuse`` posts are answered 503."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.got: list[dict[str, Any]] = []
        self.refuse = 0


class Handler(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        code = 503 if self.server.refuse else 200
        self.server.refuse = max(0, self.server.refuse - 1)
        if code == 200:
            self.server.got.append(json.loads(body))
        self.send_response(code)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    server = Webhook()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv(notify.URL, f"http://127.0.0.1:{server.server_port}/token-abc")
    monkeypatch.delenv(notify.WHEN, raising=False)
    yield server
    server.shutdown()
    server.server_close()


def test_sent_once_also_when_the_first_try_fails(webhook: Webhook) -> None:
    webhook.refuse = 1
    assert notify.send(notify.message("train-iwm", "red-fox", "Failed", "gate@core failed"))
    assert webhook.got == [
        {
            "text": "train-iwm (red-fox): Failed. gate@core failed",
            "flow": "train-iwm",
            "run": "red-fox",
            "state": "Failed",
            "message": "gate@core failed",
        }
    ]


def test_an_address_that_does_not_answer_is_a_warning_without_the_address(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notify, "ATTEMPTS", 1)
    for url in ("http://127.0.0.1:9/secret-token", "no address: secret-token"):
        monkeypatch.setenv(notify.URL, url)
        assert not notify.send({})
    assert len(caplog.records) == 2
    assert "secret-token" not in caplog.text
    monkeypatch.delenv(notify.URL)
    assert not notify.send({})


@pytest.mark.usefixtures("prefect_server")
def test_a_run_that_fails_is_told_and_one_that_completes_only_when_asked(
    repo: Path, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.train import train_iwm

    toy.behave(repo, ingest="fail")
    assert train_iwm(targets=["ingest"], return_state=True).is_failed()
    assert [(sent["flow"], sent["state"]) for sent in webhook.got] == [("train-iwm", "Failed")]
    assert "ingest failed: mrr.model 0.031" in webhook.got[0]["message"]
    toy.behave(repo)
    assert train_iwm(targets=["ingest"], return_state=True).is_completed()
    assert len(webhook.got) == 1
    monkeypatch.setenv(notify.WHEN, "always")
    assert train_iwm(targets=["ingest"], return_state=True).is_completed()
    assert webhook.got[-1]["state"] == "Completed"

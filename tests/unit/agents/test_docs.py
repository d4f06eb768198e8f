"""The snippets of docs/agents.md, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakeservice import FakeService

PAGE = Path(__file__).parents[3] / "docs/agents.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
MOVES = {
    "noop": (0, 0),
    "move_forward": (0, 1),
    "move_backward": (0, -1),
    "turn_left": (-1, 0),
    "turn_right": (1, 0),
}


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_a_snippet_runs(
    snippet: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service = FakeService(MOVES)
    for name in ("Client", "AsyncClient"):
        real = getattr(httpx, name)

        def faked(real: Any = real, **settings: Any) -> Any:
            return real(**{**settings, "transport": httpx.MockTransport(service)})

        monkeypatch.setattr(httpx, name, faked)
    exec(compile(snippet, str(PAGE), "exec"), {"__name__": "__main__"})
    assert service.asked
    assert capsys.readouterr().out


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) >= 3

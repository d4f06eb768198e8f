"""Reasoners: the rule, a chat server that does whatever servers do, and the loop beside it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import pytest
from fakechat import KEY, FakeChat, chat_server
from pydantic import SecretStr
from tinyembodied import starts, tiny_compressor, tiny_generator

from iwm.agents.chat import ChatReasoner
from iwm.agents.config import ReasonerConfig, reasoner_config
from iwm.agents.integrated import IntegratedAgent
from iwm.agents.reasoner import BackgroundReasoner, HeuristicReasoner, Question, Verdict
from iwm.errors import ConfigError, ServiceError

FUTURES, STEPS = 4, 10


def question(step: int = 0, goal: str = "north", seed: int = 0) -> Question:
    rng = np.random.default_rng(seed)
    return Question(
        goal,
        np.array([3.0, 1.0, 2.0, 0.0], np.float32),
        np.full((FUTURES, STEPS), 0.1, np.float32),
        rng.normal(size=(FUTURES, STEPS, 3)).astype(np.float32),
        step,
    )


@pytest.fixture
def server() -> Iterator[FakeChat]:
    with chat_server() as fake:
        yield fake


def chat(server: FakeChat, key: str = KEY, **settings: float) -> ChatReasoner:
    values = {"timeout_s": 5.0, "retries": 1, **settings}
    return ChatReasoner(
        ReasonerConfig(base_url=server.url, model="fake-r1", key=SecretStr(key), **values)  # type: ignore[arg-type]
    )


def test_the_rule_weighs_return_and_risk() -> None:
    asked = question()
    assert HeuristicReasoner().reason(asked).index == 0
    risky = asked.uncertainty.copy()
    risky[0] = 0.9
    bold = Question(asked.goal, asked.returns, risky, asked.courses)
    assert HeuristicReasoner(caution=0).reason(bold).index == 0
    careful = HeuristicReasoner(caution=2).reason(bold)
    assert careful.index == 2
    assert careful.confidence == pytest.approx(0.99)
    assert careful.source == "heuristic"


def test_futures_that_do_not_differ() -> None:
    scores = HeuristicReasoner().scores(np.full(3, 7.0), np.full((3, 2), 0.1))
    assert (scores == 0).all()


def test_a_normal_answer_and_its_thoughts(server: FakeChat) -> None:
    verdict = chat(server).reason(question())
    assert verdict == Verdict(2, 0.8, "chat", "The third leads there.")
    (asked,) = server.asked
    assert asked["model"] == "fake-r1"
    assert "Goal: north" in asked["messages"][1]["content"]
    assert asked["messages"][1]["content"].count('"index"') == FUTURES


def test_a_server_without_thoughts_and_with_a_fence(server: FakeChat) -> None:
    server.script, server.answer = ["plain"], 'Maybe {"a": 1}:\n```json\n{"index": 1}\n```'
    assert chat(server).reason(question()) == Verdict(1, 0.5, "chat", "")


def test_too_many_requests_are_repeated_when_the_server_says(server: FakeChat) -> None:
    server.script, server.retry_after = ["busy"], "1"
    assert chat(server).reason(question()).index == 2
    first, second = server.times
    assert second - first >= 1.0


@pytest.mark.parametrize("how", ["cut", "unfinished", "malformed", "strange", "broken"])
def test_what_is_cut_or_malformed_is_asked_again(server: FakeChat, how: str) -> None:
    server.script = [how]
    assert chat(server).reason(question()).index == 2
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("script", "line"),
    [
        (["cut"] * 4, "the answer was cut"),
        (["unfinished"] * 4, "the answer was cut"),
        (["malformed"] * 4, "not the interface's JSON"),
        (["broken"] * 4, "500: the server failed"),
        (["no_answer"], "names no future"),
        (["beyond"], "names no future"),
        (["endless"], "more than 200000 characters"),
    ],
)
def test_what_never_comes_is_one_line(server: FakeChat, script: list[str], line: str) -> None:
    server.script = script
    with pytest.raises(ServiceError, match=line) as caught:
        chat(server).reason(question())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["slow", "drip"])
def test_a_slow_server_ends_at_the_limit(server: FakeChat, how: str) -> None:
    server.script, server.delay_s = [how], 30.0
    begun = time.monotonic()
    with pytest.raises(ServiceError, match=r"no answer within 0\.3 s"):
        chat(server, timeout_s=0.3, retries=0).reason(question())
    assert time.monotonic() - begun < 10


def test_a_server_that_is_not_there() -> None:
    with chat_server() as gone:
        reasoner = chat(gone, retries=0)
    with pytest.raises(ServiceError, match="not reached"):
        reasoner.reason(question())


@pytest.mark.parametrize("wrong", ["sk-wrong-fedcba9876543210", ""])
def test_the_key_shows_nowhere(
    server: FakeChat, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    """Not in errors, whose server repeats it, nor in logs at their loudest, nor in reprs."""
    caplog.set_level(logging.DEBUG)
    good, bad = chat(server), chat(server, key=wrong)
    assert good.reason(question()).index == 2
    with pytest.raises(ServiceError, match="401: the key is refused") as caught:
        bad.reason(question())
    aside = BackgroundReasoner(bad, budget_s=5.0)
    assert aside.reason(question()).source == "heuristic"
    shown = [
        caplog.text,
        *(str(vars(record)) for record in caplog.records),
        *(repr(thing) + str(thing) for thing in (good, bad, good.config, bad.config)),
        repr(caught.value),
        str(asdict(good.config)),
    ]
    assert caplog.records
    for text in shown:
        assert KEY not in text
        assert not wrong or wrong not in text
        assert "sk-" not in text
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "how", ["slow", "drip", "busy", "malformed", "cut", "unfinished", "broken", "no_answer", "key"]
)
def test_the_loop_never_waits_beyond_its_budget(server: FakeChat, how: str) -> None:
    """Whatever the server does: the rule answers, and nobody asks again soon."""
    server.script, server.delay_s, server.retry_after = [how] * 100, 30.0, "30"
    slow = chat(server, key="sk-wrong" if how == "key" else KEY, timeout_s=30)
    aside = BackgroundReasoner(slow, budget_s=0.05, pause_s=60)
    begun = time.monotonic()
    verdicts = [aside.reason(question(step)) for step in range(20)]
    assert time.monotonic() - begun < 5
    assert {verdict.source for verdict in verdicts} == {"heuristic"}
    assert aside.counts["asked"] == 1  # one question at a time
    assert aside.counts["answered"] == 0
    server.released.set()


def test_an_answer_within_the_budget_is_taken(server: FakeChat) -> None:
    aside = BackgroundReasoner(chat(server), budget_s=10.0)
    assert aside.reason(question()).source == "chat"
    assert aside.counts == {"asked": 1, "answered": 1, "failed": 0}


class Late:
    """Answers when it is let."""

    def __init__(self, index: int = 3, error: Exception | None = None) -> None:
        self.index, self.error, self.free = index, error, threading.Event()

    def reason(self, question: Question) -> Verdict:
        assert self.free.wait(20)
        if self.error:
            raise self.error
        return Verdict(self.index, 0.9, "chat", "because")


def settled(aside: BackgroundReasoner, what: str, count: int) -> None:
    deadline = time.monotonic() + 20
    while aside.counts[what] < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_late_advice_is_a_course_to_keep_to() -> None:
    late = Late(index=3)
    aside = BackgroundReasoner(late, keep_steps=6)
    first = question(0)
    assert aside.reason(first).source == "heuristic"
    late.free.set()
    settled(aside, "answered", 1)
    # Two steps later the advised course is the second future, two steps on.
    courses = question(2, seed=1).courses
    courses[1, :-2] = first.courses[3, 2:]
    later = Question("north", first.returns, first.uncertainty, courses, 2)
    kept = aside.reason(later)
    assert (kept.index, kept.source, kept.thoughts) == (1, "remembered", "because")
    other_goal = Question("south", first.returns, first.uncertainty, courses, 2)
    assert aside.reason(other_goal).source == "heuristic"
    far = question(2, seed=5)
    assert aside.reason(far).source == "heuristic"
    assert aside.reason(Question("north", first.returns, first.uncertainty, courses, 9)).source in (
        "heuristic",
        "remembered",
    )


@pytest.mark.parametrize("error", [ServiceError("away"), RuntimeError("a bug")])
def test_failures_are_counted_and_pause_the_questions(error: Exception) -> None:
    late = Late(error=error)
    late.free.set()
    aside = BackgroundReasoner(late, pause_s=60)
    for step in range(5):
        assert aside.reason(question(step)).source == "heuristic"
        settled(aside, "failed", 1)
    assert aside.counts == {"asked": 1, "answered": 0, "failed": 1}


def test_an_agent_thinks_with_a_server(server: FakeChat) -> None:
    generator = tiny_generator()
    agent = IntegratedAgent(
        generator, tiny_compressor(generator), BackgroundReasoner(chat(server), budget_s=10.0)
    )
    thought = agent.think_and_act(starts(1)[0], "north")
    assert (thought.verdict.source, thought.verdict.index) == ("chat", 2)
    assert '"g":"north","c":80' in thought.intention


def test_configuration_comes_from_the_environment() -> None:
    assert reasoner_config({}) is None
    found = reasoner_config(
        {
            "IWM_REASONER_URL": "https://models.example/v1",
            "IWM_REASONER_MODEL": "deepseek-reasoner",
            "IWM_REASONER_KEY": KEY,
            "IWM_REASONER_TIMEOUT_S": "30",
        }
    )
    assert found is not None
    assert (found.model, found.timeout_s) == ("deepseek-reasoner", 30.0)
    assert found.key.get_secret_value() == KEY
    assert KEY not in repr(found)


@pytest.mark.parametrize(
    "values",
    [
        {"IWM_REASONER_URL": "models.example", "IWM_REASONER_MODEL": "m"},
        {"IWM_REASONER_URL": "https://me:secret@models.example/v1", "IWM_REASONER_MODEL": "m"},
        {"IWM_REASONER_URL": "https://models.example/v1"},
        {
            "IWM_REASONER_URL": "https://a/v1",
            "IWM_REASONER_MODEL": "m",
            "IWM_REASONER_RETRIES": "x",
        },
    ],
)
def test_wrong_configuration_is_one_line_without_the_key(values: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        reasoner_config({**values, "IWM_REASONER_KEY": KEY})
    assert KEY not in str(caught.value)
    assert "secret" not in str(caught.value)

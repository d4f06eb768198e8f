"""A reasoner behind a chat server with OpenAI's interface: DeepSeek-R1, or any other.

Answers are streamed, so that a cut one is known as such and a long one ends at the time limit.
``reasoning_content`` is read where the server sends it. The key is handed to the client and to
nobody else: what servers say is never repeated without looking for it.
"""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING, Any

from iwm.agents.config import ReasonerConfig
from iwm.agents.reasoner import Question, Verdict
from iwm.errors import ServiceError

if TYPE_CHECKING:
    from openai import OpenAI

SYSTEM = (
    "You choose which of several imagined futures an agent should follow. You are given its "
    "goal and, for each future, its expected return (higher is better), how uncertain it is "
    "(0 is sure) and where it leads. Answer with one JSON object and nothing else: "
    '{"index": <number of the future>, "confidence": <0 to 1>}'
)
_SHOWN = 4
"""Numbers of a course's end that are shown."""
_READ = 4000
"""Characters of an answer, from its end, that are searched for its JSON."""


class ChatReasoner:
    """Asks; each call may take as long as the configuration allows."""

    def __init__(self, config: ReasonerConfig) -> None:
        self.config = config
        self._client = _client(config)

    def __repr__(self) -> str:
        return f"ChatReasoner({self.config.model!r} at {self.config.base_url!r})"

    def reason(self, question: Question) -> Verdict:
        """Ask which future to follow.

        Raises:
            ServiceError: no answer, a cut one, one that names no future; one line, without the
                key.
        """
        last: ServiceError | None = None
        # The client repeats what the server refuses; an answer that is cut is ours to repeat.
        for _ in range(1 + self.config.retries):
            try:
                text, thoughts = self._ask(question)
            except _Cut as error:
                last = self._error(str(error))
                continue
            return self._verdict(text, thoughts, len(question.returns))
        assert last is not None
        raise last

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _ask(self, question: Question) -> tuple[str, str]:
        """What was answered, and what was thought."""
        import openai

        content: list[str] = []
        thoughts: list[str] = []
        size, whole = 0, False
        begun = time.monotonic()
        try:
            stream = self._client.chat.completions.create(
                model=self.config.model,
                messages=[
                    {"role": "system", "content": SYSTEM},
                    {"role": "user", "content": described(question)},
                ],
                stream=True,
            )
            with stream:
                for chunk in stream:
                    if time.monotonic() - begun > self.config.timeout_s:
                        raise self._error(f"no answer within {self.config.timeout_s:g} s")
                    for choice in chunk.choices or ():
                        thought = getattr(choice.delta, "reasoning_content", None)
                        for parts, part in ((content, choice.delta.content), (thoughts, thought)):
                            if isinstance(part, str):
                                parts.append(part)
                                size += len(part)
                        whole = whole or choice.finish_reason is not None
                    if size > self.config.max_characters:
                        raise self._error(f"more than {self.config.max_characters} characters")
        except openai.APIStatusError as error:
            raise self._error(f"{error.status_code}: {_reason(error)}") from None
        except openai.APITimeoutError:
            raise self._error(f"no answer within {self.config.timeout_s:g} s") from None
        except openai.APIConnectionError as error:
            if content or thoughts:
                raise _Cut("the answer was cut") from None
            raise self._error(f"not reached: {type(error.__cause__ or error).__name__}") from None
        except openai.OpenAIError as error:
            raise self._error(type(error).__name__) from None
        except (ValueError, AttributeError, TypeError):
            raise _Cut("the answer is not the interface's JSON") from None
        if not whole:
            raise _Cut("the answer was cut")
        return "".join(content), "".join(thoughts)

    def _verdict(self, text: str, thoughts: str, count: int) -> Verdict:
        """Read an answer; the last JSON object in it counts."""
        found = _last_object(text)
        index, sure = found.get("index"), found.get("confidence", 0.5)
        if type(index) is not int or not 0 <= index < count:
            raise self._error("the answer names no future")
        if type(sure) not in (int, float) or not math.isfinite(sure):
            raise self._error("the answer's confidence is no number")
        return Verdict(index, min(max(float(sure), 0.0), 1.0), "chat", thoughts)

    def _error(self, line: str) -> ServiceError:
        key = self.config.key.get_secret_value()
        if key:
            line = line.replace(key, "***")
        return ServiceError(f"{self.config.base_url}: {line}")


class _Cut(Exception):
    """An answer whose end is missing."""


def _client(config: ReasonerConfig) -> OpenAI:
    from openai import OpenAI

    return OpenAI(
        base_url=config.base_url,
        # Servers without keys are asked with one that says nothing.
        api_key=config.key.get_secret_value() or "none",
        timeout=config.timeout_s,
        max_retries=config.retries,
    )


def described(question: Question) -> str:
    """A question in words and numbers."""
    futures = [
        {
            "index": i,
            "return": round(float(question.returns[i]), 3),
            "uncertainty": round(float(question.uncertainty[i].mean()), 3),
            "leads_to": [round(float(x), 2) for x in question.courses[i, -1, :_SHOWN]],
        }
        for i in range(len(question.returns))
    ]
    return f"Goal: {question.goal}\nFutures: {json.dumps(futures)}"


def _reason(error: Any) -> str:
    """Why a server refused, as far as that can hold no secret: the status in words."""
    words = {
        400: "the request is refused",
        401: "the key is refused",
        403: "the key may not do this",
        404: "no such model or path",
        429: "too many requests",
    }
    return words.get(error.status_code, "the server failed")


def _last_object(text: str) -> dict[str, Any]:
    """The last JSON object that stands in a text, or an empty one."""
    text = text[-_READ:]
    decoder, found, place = json.JSONDecoder(), {}, text.find("{")
    while place >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            end = place + 1
        else:
            found = value
        place = text.find("{", end)
    return found

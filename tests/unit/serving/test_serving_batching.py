"""The batcher: order, keys, bounds, failures, cancelled waiters."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Hashable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iwm.serving import batching
from iwm.serving.batching import Batcher, Overdue


@settings(deadline=None, max_examples=30)
@given(
    keys=st.lists(st.sampled_from("abc"), min_size=1, max_size=40),
    max_batch=st.integers(1, 8),
)
def test_every_item_gets_its_own_result_and_batches_never_mix_keys(
    keys: list[str], max_batch: int
) -> None:
    batches: list[tuple[Hashable, list[tuple[str, int]]]] = []

    def work(key: Hashable, items: Sequence[tuple[str, int]]) -> list[int]:
        batches.append((key, list(items)))
        return [10 * number for _, number in items]

    async def scenario() -> list[int]:
        batcher = Batcher(work, max_batch)
        try:
            jobs = [batcher.submit(key, (key, number)) for number, key in enumerate(keys)]
            return await asyncio.gather(*jobs)
        finally:
            batcher.close()

    assert asyncio.run(scenario()) == [10 * number for number in range(len(keys))]
    assert all(len(items) <= max_batch for _, items in batches)
    assert all(name == key for key, items in batches for name, _ in items)
    done = [number for _, items in batches for key, number in items if key == keys[0]]
    assert done == sorted(done)


def test_an_error_reaches_its_batch_only() -> None:
    def work(key: Hashable, items: Sequence[int]) -> Sequence[int]:
        if key == "bad":
            raise ValueError("no")
        return items

    async def scenario() -> None:
        batcher = Batcher(work, 4)
        bad, good = batcher.submit("bad", 1), batcher.submit("good", 2)
        results = await asyncio.gather(bad, good, return_exceptions=True)
        assert isinstance(results[0], ValueError)
        assert results[1] == 2
        assert await batcher.submit("good", 3) == 3
        batcher.close()

    asyncio.run(scenario())


def test_its_thread_can_be_started_before_there_is_work() -> None:
    threads: list[int] = []

    def work(_: Hashable, items: Sequence[int]) -> Sequence[int]:
        threads.append(threading.get_ident())
        return items

    async def scenario() -> None:
        batcher: Batcher[int, int] = Batcher(work, 4)
        batcher.begin(lambda: threads.append(threading.get_ident()))
        await batcher.submit("a", 1)
        batcher.close()

    asyncio.run(scenario())
    assert len(threads) == 2
    assert set(threads) == {threads[0]} != {threading.get_ident()}


def test_closing_cancels_who_waits() -> None:
    async def scenario() -> None:
        batcher = Batcher(lambda _, items: items, 1)
        waiting = asyncio.create_task(batcher.submit("a", 1))
        await asyncio.sleep(0)
        batcher.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(scenario())


@settings(deadline=None, max_examples=25)
@given(
    clients=st.lists(
        st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3)), min_size=1, max_size=5),
        min_size=1,
        max_size=8,
    ),
    max_batch=st.integers(1, 8),
    coming=st.integers(0, 1),
)
def test_clients_that_come_back_get_their_own_results(
    clients: list[list[tuple[str, int]]], max_batch: int, coming: int
) -> None:
    def work(_: Hashable, items: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        time.sleep(0.001)
        return list(items)

    async def client(batcher: Batcher[Any, Any], number: int) -> None:
        for turn, (key, pause) in enumerate(clients[number]):
            assert await batcher.submit(key, (number, turn)) == (number, turn)
            await asyncio.sleep(pause / 1000)

    async def scenario() -> None:
        batcher: Batcher[Any, Any] = Batcher(work, max_batch, coming=lambda: coming)
        try:
            await asyncio.gather(*(client(batcher, number) for number in range(len(clients))))
        finally:
            batcher.close()

    asyncio.run(scenario())


def test_nothing_is_computed_for_who_would_be_answered_too_late() -> None:
    computed: list[int] = []

    def work(_: Hashable, items: Sequence[int]) -> Sequence[int]:
        computed.extend(items)
        time.sleep(0.2 * len(items))
        return items

    async def scenario() -> list[Any]:
        batcher: Batcher[int, int] = Batcher(work, 1, patience_s=0.7)
        waiting = [batcher.submit("a", number) for number in range(8)]
        found = await asyncio.gather(*waiting, return_exceptions=True)
        # Who comes to an idle model is computed, whatever it took before.
        assert await batcher.submit("a", 8) == 8
        batcher.close()
        return found

    found = asyncio.run(scenario())
    answered = [one for one in found if isinstance(one, int)]
    assert answered == computed[:-1]
    assert 1 <= len(answered) <= 3
    assert all(isinstance(one, Overdue) for one in found[len(answered) :])


def test_a_model_that_is_always_too_slow_still_answers_who_comes_first() -> None:
    def work(_: Hashable, items: Sequence[int]) -> Sequence[int]:
        time.sleep(0.05)
        return items

    async def scenario() -> None:
        batcher: Batcher[int, int] = Batcher(work, 4, patience_s=0.01)
        for number in range(3):
            assert await batcher.submit("a", number) == number
        batcher.close()

    asyncio.run(scenario())


def closed_loop(clients: int, turns: int, keys: str = "a", pause_s: float = 0.0) -> list[int]:
    """Sizes of the batches of clients that ask again as soon as they are answered."""
    sizes: list[int] = []

    def work(_: Hashable, items: Sequence[int]) -> Sequence[int]:
        time.sleep(0.005)
        return items

    async def client(batcher: Batcher[int, int], number: int) -> None:
        for _ in range(turns):
            await batcher.submit(keys[number % len(keys)], number)
            await asyncio.sleep(pause_s)

    async def scenario() -> None:
        batcher: Batcher[int, int] = Batcher(work, 16, observe=sizes.append)
        await asyncio.gather(*(client(batcher, number) for number in range(clients)))
        batcher.close()

    asyncio.run(scenario())
    return sizes


def test_a_crowd_that_was_answered_together_is_computed_together_again() -> None:
    sizes = closed_loop(8, 10)
    assert sum(sizes) == 80
    assert sizes.count(8) >= 8


def test_a_lone_client_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    release = batching._release

    def counted(gathered: asyncio.Future[None]) -> None:
        waits.append(1)
        release(gathered)

    monkeypatch.setattr(batching, "_release", counted)
    assert closed_loop(1, 5, pause_s=0.01) == [1] * 5
    assert not waits


def test_a_crowd_that_leaves_is_waited_for_once() -> None:
    sizes: list[int] = []

    def work(_: Hashable, items: Sequence[int]) -> Sequence[int]:
        time.sleep(0.01)
        return items

    async def scenario() -> None:
        batcher: Batcher[int, int] = Batcher(work, 16, observe=sizes.append)
        await asyncio.gather(*(batcher.submit("a", number) for number in range(8)))
        for _ in range(3):
            await batcher.submit("a", 0)
        batcher.close()

    asyncio.run(scenario())
    assert sizes == [8, 1, 1, 1]


def test_who_wants_something_else_ends_the_wait() -> None:
    sizes = closed_loop(6, 5, keys="ab")
    assert sum(sizes) == 30
    assert max(sizes) <= 3


def test_a_batch_holds_no_key_after_its_end() -> None:
    class Key:
        """Stands for a model."""

    async def scenario() -> Any:
        batcher: Batcher[int, int] = Batcher(lambda _, items: items, 4)
        key = Key()
        gone = weakref.ref(key)
        await batcher.submit(key, 1)
        del key
        await asyncio.sleep(0.01)
        gc.collect()
        batcher.close()
        return gone()

    assert asyncio.run(scenario()) is None

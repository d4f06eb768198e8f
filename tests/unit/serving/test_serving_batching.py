"""The batcher: order, keys, bounds, failures, cancelled waiters."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iwm.serving.batching import Batcher


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


def test_closing_cancels_who_waits() -> None:
    async def scenario() -> None:
        batcher = Batcher(lambda _, items: items, 1)
        waiting = asyncio.create_task(batcher.submit("a", 1))
        await asyncio.sleep(0)
        batcher.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(scenario())

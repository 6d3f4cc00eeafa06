"""The memory of made bytes: each made once, bounded, and nobody left waiting."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cache.memo import Memo


class Maker:
    """Makes bytes when it may, and counts."""

    def __init__(self, result: bytes | Exception, *, held: bool = False) -> None:
        self.result = result
        self.calls = 0
        self.gate = trio.Event()
        if not held:
            self.gate.set()

    async def __call__(self) -> bytes:
        self.calls += 1
        await self.gate.wait()
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


async def test_a_result_is_made_once_for_all_who_wait():
    memo, make = Memo(100), Maker(b"made", held=True)
    results = []

    async def ask() -> None:
        results.append(await memo.get_or_make("key", make))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        assert memo.get("key") is None
        make.gate.set()
    assert results == [b"made"] * 5
    assert make.calls == 1
    assert memo.get("key") == b"made"


async def test_an_empty_result_is_a_result():
    memo, make = Memo(100), Maker(b"")
    assert await memo.get_or_make("key", make) == b""
    assert await memo.get_or_make("key", make) == b""
    assert make.calls == 1


async def test_those_who_wait_get_what_is_too_large_to_stay():
    memo, big, small = Memo(10), Maker(b"x" * 50, held=True), Maker(b"small")
    results = []

    async def ask() -> None:
        results.append(await memo.get_or_make("big", big))
        await memo.get_or_make("small", small)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        big.gate.set()
    assert results == [b"x" * 50] * 3
    assert big.calls == 1
    assert memo.get("big") is None


async def test_an_error_reaches_all_who_wait_and_the_next_one_tries_again():
    memo, make = Memo(100), Maker(ValueError("no"), held=True)
    failures = []

    async def ask() -> None:
        try:
            await memo.get_or_make("key", make)
        except ValueError as error:
            failures.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        make.gate.set()
    assert len(failures) == 5
    assert make.calls == 1
    assert await memo.get_or_make("key", Maker(b"now")) == b"now"


async def test_when_the_maker_is_cancelled_one_who_waits_takes_over():
    memo, first, second = Memo(100), Maker(b"first", held=True), Maker(b"second", held=True)
    results = []

    async def ask(make: Maker) -> None:
        results.append(await memo.get_or_make("key", make))

    async with trio.open_nursery() as outer:
        async with trio.open_nursery() as inner:
            inner.start_soon(ask, first)
            await wait_all_tasks_blocked()
            outer.start_soon(ask, second)
            outer.start_soon(ask, second)
            await wait_all_tasks_blocked()
            assert second.calls == 0
            inner.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        second.gate.set()
    assert results == [b"second"] * 2
    assert second.calls == 1


async def test_who_waits_can_give_up():
    memo, make = Memo(100), Maker(b"made", held=True)
    async with trio.open_nursery() as outer:
        outer.start_soon(memo.get_or_make, "key", make)
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as inner:
            inner.start_soon(memo.get_or_make, "key", make)
            await wait_all_tasks_blocked()
            inner.cancel_scope.cancel()
        make.gate.set()
    assert memo.get("key") == b"made"
    assert make.calls == 1


async def test_the_least_recently_used_goes_first():
    memo = Memo(30)
    for name in "abc":
        await memo.get_or_make(name, Maker(name.encode() * 10))
    assert memo.get("a")
    await memo.get_or_make("d", Maker(b"d" * 10))
    assert [memo.get(name) is not None for name in "abcd"] == [True, False, True, True]
    await memo.get_or_make("e", Maker(b"e" * 25))
    assert [memo.get(name) is not None for name in "abcde"] == [False, False, False, False, True]


@pytest.mark.parametrize("limit", [0, 9])
async def test_the_newest_stays_even_if_it_is_too_large(limit: int):
    memo = Memo(limit)
    await memo.get_or_make("a", Maker(b"a" * 10))
    assert memo.get("a")
    await memo.get_or_make("b", Maker(b"b" * 10))
    assert memo.get("a") is None
    assert memo.get("b")

"""One fetch per chunk within one process, with and without lock files."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import cache.flights
import cache.locks
from cache.errors import InvalidChunkKeyError
from cache.flights import Flight, Flights
from cache.key import ChunkKey
from cache.memory import MemoryStore
from tests.support.cache_chunks import chunk_data, chunk_key
from tests.support.cache_worker import get

KEY = chunk_key(1)


class FetchError(Exception):
    pass


@pytest.fixture(params=["this process", "lock files"])
def flights(request, tmp_path: Path) -> Flights:
    return Flights(tmp_path if request.param == "lock files" else None)


def claimed(flights: Flights, key: ChunkKey = KEY) -> Flight:
    flight = flights.claim(key)
    assert flight is not None
    return flight


class Waiters:
    """Tasks that wait for one chunk, and what became of them."""

    def __init__(self, flights: Flights) -> None:
        self.flights = flights
        self.outcomes: list[bytes | Exception | None] = []

    async def wait(self) -> None:
        try:
            self.outcomes.append(await self.flights.wait(KEY))
        except FetchError as error:
            self.outcomes.append(error)

    async def start(self, nursery: trio.Nursery, count: int) -> None:
        for _ in range(count):
            nursery.start_soon(self.wait)
        await wait_all_tasks_blocked()
        assert self.outcomes == []


async def test_a_claimed_chunk_is_claimed_once_and_others_freely(flights: Flights):
    with claimed(flights):
        assert flights.claim(KEY) is None
        assert flights.claim(KEY) is None
        with claimed(flights, chunk_key(2)), claimed(flights, KEY._replace(form="frame")):
            pass
        assert flights.claim(KEY) is None
    with claimed(flights):
        pass


async def test_those_who_wait_get_the_bytes_before_the_flight_ends(flights: Flights):
    waiters = Waiters(flights)
    async with trio.open_nursery() as nursery:
        with claimed(flights) as flight:
            await waiters.start(nursery, 5)
            flight.land(b"chunk")
            await wait_all_tasks_blocked()
            assert waiters.outcomes == [b"chunk"] * 5
            assert flights.claim(KEY) is None
            assert await flights.wait(KEY) == b"chunk"
    assert await flights.wait(KEY) is None


async def test_those_who_wait_get_the_error(flights: Flights):
    waiters = Waiters(flights)
    error = FetchError("registry gone")
    async with trio.open_nursery() as nursery:
        with claimed(flights) as flight:
            await waiters.start(nursery, 3)
            flight.fail(error)
        await wait_all_tasks_blocked()
    assert waiters.outcomes == [error] * 3
    with claimed(flights):  # an error is not remembered
        pass


async def test_the_first_outcome_counts(flights: Flights):
    waiters = Waiters(flights)
    async with trio.open_nursery() as nursery:
        with claimed(flights) as flight:
            await waiters.start(nursery, 1)
            flight.land(b"chunk")
            flight.fail(FetchError("storing it failed"))
            flight.land(b"other")
    assert waiters.outcomes == [b"chunk"]


@pytest.mark.parametrize("leave", ["end", "error", "cancel"])
async def test_a_flight_left_without_an_outcome_wakes_those_who_wait(flights: Flights, leave: str):
    waiters = Waiters(flights)

    async def leader(scope: trio.CancelScope, go: trio.Event) -> None:
        with scope, claimed(flights):
            await go.wait()
            if leave == "error":
                raise FetchError("not passed on")

    scope, go = trio.CancelScope(), trio.Event()
    async with trio.open_nursery() as nursery:

        async def lead() -> None:
            with contextlib.suppress(FetchError):
                await leader(scope, go)

        nursery.start_soon(lead)
        await wait_all_tasks_blocked()
        await waiters.start(nursery, 3)
        if leave == "cancel":
            scope.cancel()
        else:
            go.set()
    assert waiters.outcomes == [None] * 3
    with claimed(flights):
        pass


async def test_a_cancelled_waiter_leaves_the_flight_alone(flights: Flights):
    with claimed(flights) as flight:
        with trio.CancelScope() as scope:
            scope.cancel()
            await flights.wait(KEY)
        assert scope.cancelled_caught
        flight.land(b"chunk")
        assert await flights.wait(KEY) == b"chunk"


async def test_waiting_for_nobody_returns_but_lets_others_run(flights: Flights):
    with trio.CancelScope() as scope:
        scope.cancel()
        await flights.wait(KEY)
    assert scope.cancelled_caught
    assert await flights.wait(KEY) is None


async def test_a_bad_key_is_refused(flights: Flights):
    bad = ChunkKey("sha512", "../../../etc/passwd", "data")
    with pytest.raises(InvalidChunkKeyError):
        flights.claim(bad)
    with pytest.raises(InvalidChunkKeyError):
        await flights.wait(bad)


async def read_by_many(
    flights: Flights, count: int, fail: Callable[[int], bool]
) -> tuple[int, list[bytes]]:
    """Have ``count`` tasks read one chunk; how many fetches began, and what the tasks got."""
    store = MemoryStore()
    begun = 0
    results: list[bytes] = []

    async def fetch() -> bytes:
        nonlocal begun
        begun += 1
        number = begun
        await trio.sleep(1)
        if fail(number):
            raise FetchError(str(number))
        return chunk_data(1)

    async def reader() -> None:
        with contextlib.suppress(FetchError):
            results.append(await get(store, flights, 1, fetch))

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(reader)
    return begun, results


async def test_many_readers_make_one_fetch(flights: Flights, autojump_clock):
    begun, results = await read_by_many(flights, 20, fail=lambda number: False)
    assert begun == 1
    assert results == [chunk_data(1)] * 20


async def test_when_a_fetch_fails_one_of_those_who_wait_fetches_next(
    flights: Flights, autojump_clock
):
    begun, results = await read_by_many(flights, 20, fail=lambda number: number < 4)
    assert begun == 4
    assert results == [chunk_data(1)] * 17


# Lock files


async def test_two_that_share_a_folder_exclude_each_other(tmp_path: Path):
    one, other = Flights(tmp_path), Flights(tmp_path)
    with claimed(one):
        assert other.claim(KEY) is None
        assert [found.name for found in tmp_path.iterdir()] == [KEY.file_name]
    with claimed(other):
        assert one.claim(KEY) is None
    assert list(tmp_path.iterdir()) == []
    assert one.lock_failures == other.lock_failures == 0


async def test_a_lock_file_left_by_a_killed_process_is_taken_over(tmp_path: Path):
    (tmp_path / KEY.file_name).touch()
    flights = Flights(tmp_path)
    assert await flights.wait(KEY) is None
    with claimed(flights):
        assert Flights(tmp_path).claim(KEY) is None
    assert list(tmp_path.iterdir()) == []


async def test_a_waiter_for_another_process_gets_what_this_one_fetches_next(
    tmp_path: Path, autojump_clock
):
    here, elsewhere = Flights(tmp_path), Flights(tmp_path)
    waiters = Waiters(here)
    async with trio.open_nursery() as nursery:
        with claimed(elsewhere):
            await waiters.start(nursery, 2)
        with claimed(here) as flight:  # quicker than those who wait
            await wait_all_tasks_blocked()
            await trio.sleep(1)
            assert waiters.outcomes == []
            flight.land(b"chunk")
    assert waiters.outcomes == [b"chunk"] * 2


async def test_without_lock_files_each_process_fetches_for_itself(tmp_path: Path):
    one, other = Flights(tmp_path / "missing"), Flights(tmp_path / "missing")
    with claimed(one):
        assert one.claim(KEY) is None
        with claimed(other):
            pass
        assert await other.wait(KEY) is None
    assert one.lock_failures == 1


async def test_many_claims_do_not_use_up_the_descriptors(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(cache.flights, "MAX_LOCK_FILES", 1)
    one, other = Flights(tmp_path), Flights(tmp_path)
    with claimed(one), claimed(one, chunk_key(2)):
        assert len(list(tmp_path.iterdir())) == 1
        assert one.claim(chunk_key(2)) is None
        assert other.claim(KEY) is None
        with claimed(other, chunk_key(3)):
            assert one.claim(chunk_key(3)) is None
    with claimed(one, chunk_key(2)):
        assert other.claim(chunk_key(2)) is None
    assert list(tmp_path.iterdir()) == []


async def test_a_lock_file_that_vanished_hurts_nobody(tmp_path: Path):
    flights = Flights(tmp_path)
    with claimed(flights):
        (tmp_path / KEY.file_name).unlink()
    with claimed(flights):
        pass
    assert flights.lock_failures == 0


async def test_a_lock_on_a_file_that_lost_its_name_is_no_lock(tmp_path: Path, monkeypatch):
    one, other = Flights(tmp_path), Flights(tmp_path)
    try_lock = cache.locks.try_lock

    def lose_the_name_first(descriptor: int, *, shared: bool = False) -> bool:
        monkeypatch.setattr(cache.locks, "try_lock", try_lock)
        (tmp_path / KEY.file_name).unlink()  # as its holder does, who unlocks it then
        return try_lock(descriptor, shared=shared)

    monkeypatch.setattr(cache.locks, "try_lock", lose_the_name_first)
    with claimed(one):
        assert other.claim(KEY) is None


async def test_a_holder_never_removes_the_lock_of_another(tmp_path: Path):
    one, other = Flights(tmp_path), Flights(tmp_path)
    with claimed(one):
        (tmp_path / KEY.file_name).unlink()  # somebody tidies up by hand
        with claimed(other):
            pass
    assert list(tmp_path.iterdir()) == []

"""Work side by side, results in order, memory bounded."""

import threading

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from lazyfs.convert.ordered import each, map_in_order


@pytest.mark.parametrize("jobs", [1, 2, 5])
async def test_results_come_in_order(jobs):
    taken: list[int] = []
    running = 0
    most = 0
    lock = threading.Lock()

    def work(item: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        result = sum(range(item % 7 * 10_000)) * 0 + item * item
        with lock:
            running -= 1
        return result

    async def take(result: int) -> None:
        await trio.lowlevel.checkpoint()
        taken.append(result)

    limiter = trio.CapacityLimiter(jobs)
    await map_in_order(work, each(range(200)), take, workers=limiter, ahead=jobs)
    assert taken == [item * item for item in range(200)]
    assert most <= jobs


async def test_no_items():
    async def take(result: int) -> None:
        raise AssertionError("nothing to take")

    await map_in_order(abs, each([]), take, workers=trio.CapacityLimiter(1), ahead=1)


async def test_work_waits_for_a_slow_taker():
    started: list[int] = []
    go_on = trio.Event()

    def work(item: int) -> int:
        started.append(item)
        return item

    async def take(result: int) -> None:
        await go_on.wait()

    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await map_in_order(
                work, each(range(100)), take, workers=trio.CapacityLimiter(4), ahead=3
            )

        nursery.start_soon(run)
        while len(started) < 4:
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        assert len(started) <= 6
        go_on.set()
    assert sorted(started) == list(range(100))


@pytest.mark.parametrize("where", ["work", "take"])
async def test_a_failure_ends_everything(where):
    calls: list[int] = []

    def work(item: int) -> int:
        calls.append(item)
        if where == "work" and item == 5:
            raise ValueError("no good")
        return item

    async def take(result: int) -> None:
        if where == "take" and result == 5:
            raise ValueError("no good")

    with pytest.RaisesGroup(ValueError, flatten_subgroups=True, allow_unwrapped=True):
        await map_in_order(
            work, each(range(10_000)), take, workers=trio.CapacityLimiter(2), ahead=2
        )
    assert len(calls) < 100

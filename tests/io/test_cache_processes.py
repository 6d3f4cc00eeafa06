"""Several processes on one store, some of them killed."""

import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import trio

from cache.chunkfiles import ChunkFiles
from cache.directory import DirectoryStore
from cache.flights import Flights
from tests.support.cache_chunks import BLOCK, charged_on_disk, chunk_data, chunk_key, chunk_path
from tests.support.cache_worker import NUMBERS, get

LIMIT = 30 * BLOCK


@pytest.fixture
def start(request):
    """Start ``tests.support.cache_worker`` with arguments; all are ended with the test."""
    processes: list[subprocess.Popen[str]] = []

    def start_worker(*arguments: object, module: str = "cache_worker") -> subprocess.Popen[str]:
        command = [sys.executable, "-m", f"tests.support.{module}", *map(str, arguments)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, cwd=request.config.rootpath, stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )
        processes.append(process)
        return process

    yield start_worker
    for process in processes:
        process.kill()
        process.communicate()


def check_store(path: Path) -> None:
    """Only whole chunks, none of them wrong; limit and count exact; nothing left over."""
    files = ChunkFiles.open(path, LIMIT)
    assert files.usage_bytes() == charged_on_disk(path) <= LIMIT
    assert list((path / "tmp").iterdir()) == []
    assert list((path / "locks").iterdir()) == []
    stored = 0
    for number in range(NUMBERS):
        if chunk_path(path, number).exists():
            assert chunk_path(path, number).read_bytes() == chunk_data(number)
            stored += 1
    assert stored == len([found for found in (path / "chunks").rglob("*") if found.is_file()])
    assert stored > 0
    files.close()


def test_processes_that_hammer_one_store_keep_its_limit(tmp_path: Path, start):
    watch = ChunkFiles.open(tmp_path, LIMIT)
    workers = [start("hammer", tmp_path, LIMIT, seed, 1500) for seed in range(3)]
    looks = 0
    while any(worker.poll() is None for worker in workers):
        for worker in workers:
            worker.stdout.readline()  # lets them work on between the looks
        with watch._ledger.locked() as account:
            taken = charged_on_disk(tmp_path)
            assert taken <= account.used_bytes <= LIMIT
        looks += 1
    assert looks > 20
    for worker in workers:
        _, problems = worker.communicate()
        assert worker.returncode == 0, problems
    watch.close()
    check_store(tmp_path)


def test_many_processes_on_a_store_with_little_room(tmp_path: Path, start):
    """Ten writers at once could write more than the limit: none of them ever does."""
    limit = 12 * BLOCK
    watch = ChunkFiles.open(tmp_path, limit)
    workers = [start("crowd", tmp_path, limit, seed, 150) for seed in range(10)]
    looks, most = 0, 0
    while any(worker.poll() is None for worker in workers):
        workers[looks % len(workers)].stdout.readline()
        with watch._ledger.locked() as account:
            taken = charged_on_disk(tmp_path)
            assert taken <= account.used_bytes <= limit
            most = max(most, taken)
        looks += 1
    assert most > limit // 2
    for worker in workers:
        _, problems = worker.communicate()
        assert worker.returncode == 0, problems
    watch.close()
    check_store(tmp_path)


def test_processes_killed_anywhere_leave_whole_chunks_and_no_more(tmp_path: Path, start):
    generator = random.Random(7)
    for seed in range(8):
        workers = [start("hammer", tmp_path, LIMIT, 10 * seed + n, 10**6) for n in range(2)]
        for _ in range(generator.randrange(1, 60)):
            for worker in workers:
                assert worker.stdout.readline(), worker.communicate()
        for worker in workers:
            worker.kill()
            worker.communicate()
        assert charged_on_disk(tmp_path) <= LIMIT
        check_store(tmp_path)


@pytest.mark.parametrize("mode", ["kill", "tear", "fail"])
def test_a_process_stopped_at_any_call_leaves_whole_chunks_and_no_more(start, mode: str):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:  # some hundred stores are made
        crashing = start(folder, mode, module="cache_crash")
        calls, problems = crashing.communicate()
    assert crashing.returncode == 0, problems
    assert int(calls) > 500  # all of them were tried, not only the first


async def test_one_process_fetches_and_another_waits_for_it(tmp_path: Path, start):
    holder = start("hold", tmp_path, 1)
    assert await trio.to_thread.run_sync(holder.stdout.readline) == "claimed\n"
    with await DirectoryStore.open(tmp_path, None) as store:
        flights = Flights(store.locks_directory)
        assert flights.claim(chunk_key(1)) is None
        results: list[bytes | None] = []

        async def wait() -> None:
            results.append(await flights.wait(chunk_key(1)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert results == []
            holder.stdin.write("go on\n")
            holder.stdin.flush()
        assert results == [None]
        data = chunk_data(1)
        assert store.read(chunk_key(1), 0, len(data)) == data


async def test_when_the_fetching_process_is_killed_another_takes_over(tmp_path: Path, start):
    holder = start("hold", tmp_path, 1)
    assert await trio.to_thread.run_sync(holder.stdout.readline) == "claimed\n"
    with await DirectoryStore.open(tmp_path, None) as store:
        flights = Flights(store.locks_directory)
        fetched: list[int] = []

        async def fetch() -> bytes:
            fetched.append(1)
            return chunk_data(1)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(get, store, flights, 1, fetch)
            await trio.testing.wait_all_tasks_blocked()
            assert fetched == []
            holder.kill()
        assert fetched == [1]
        assert list(store.locks_directory.iterdir()) == []


async def test_waiting_for_a_stopped_process_can_be_cancelled(tmp_path: Path, start):
    holder = start("hold", tmp_path, 1)
    assert await trio.to_thread.run_sync(holder.stdout.readline) == "claimed\n"
    flights = Flights(tmp_path / "locks")
    with trio.move_on_after(0.01) as scope:
        await flights.wait(chunk_key(1))
    assert scope.cancelled_caught


def test_many_readers_in_many_processes_fetch_each_chunk_once(tmp_path: Path, start):
    log = tmp_path / "log"
    workers = [start("fetch-all", tmp_path / "store", log, 60) for _ in range(3)]
    for worker in workers:
        _, problems = worker.communicate()
        assert worker.returncode == 0, problems
    fetches = Counter(map(int, log.read_text().split()))
    assert fetches == dict.fromkeys(range(60), 1)

"""The store whose disk may fail, vanish and come back, and the mark below which it gives way."""

import fcntl
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

import cache.freespace
import cache.steady
from cache.directory import DirectoryStore
from cache.errors import StoreFullError
from cache.freespace import DEFAULT_MIN_FREE, NO_MARK, MinFree
from cache.steady import SteadyStore
from tests.support.cache_chunks import BLOCK, chunk_data, chunk_key, chunk_path

DISK_BYTES = 8 << 20
WITHIN_S = 120
"""Not a bound on anything: who waits longer would wait for ever."""
BIG = 64


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system."""
    path = tmp_path / "disk"
    path.mkdir()
    with small_disk(path):
        yield path


@contextmanager
def small_disk(path: Path) -> Iterator[None]:
    options = f"size={DISK_BYTES},mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def free_bytes(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def fill(path: Path, leave_bytes: int) -> Path:
    """Somebody else's file that takes nearly all there is."""
    file = path / "others"
    file.write_bytes(bytes(max(0, free_bytes(path) - leave_bytes)))
    return file


async def put_big(store: SteadyStore | DirectoryStore, *numbers: int) -> None:
    for number in numbers:
        await store.put(chunk_key(number), chunk_data(number, BIG))


def wrong(store: SteadyStore, numbers: range) -> list[int]:
    """Which chunks the store does not give, or not right."""
    data = {number: chunk_data(number, BIG) for number in numbers}
    return [n for n in numbers if store.read(chunk_key(n), 0, len(data[n])) != data[n]]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# The mark


@pytest.mark.parametrize(
    ("min_free", "disk_bytes", "mark"),
    [
        (NO_MARK, 1 << 40, 0),
        (MinFree(5), 1 << 40, 5),
        (MinFree(percent=10), 1000, 100),
        (DEFAULT_MIN_FREE, 10 << 30, (10 << 30) // 20),
        (DEFAULT_MIN_FREE, 1 << 40, 1 << 30),
    ],
)
def test_the_smaller_mark_counts(min_free: MinFree, disk_bytes: int, mark: int):
    assert min_free.mark_bytes(disk_bytes) == mark


async def test_the_store_stops_growing_at_the_mark(disk: Path, monkeypatch):
    monkeypatch.setattr(cache.freespace, "CHECK_BYTES", 0)  # looks at each put
    mark = DISK_BYTES // 2
    with await DirectoryStore.open(disk / "store", None, MinFree(mark)) as store:
        for number in range(40):
            await put_big(store, number)
            assert free_bytes(disk) >= mark - BIG * BLOCK
        assert store.contains(chunk_key(39))
        assert not store.contains(chunk_key(0))
        assert store.statistics().evictions > 20


async def test_between_two_looks_little_can_be_stored(disk: Path, monkeypatch):
    asked = []
    fstatvfs = os.fstatvfs

    def counted(descriptor: int) -> os.statvfs_result:
        asked.append(descriptor)
        return fstatvfs(descriptor)

    monkeypatch.setattr(os, "fstatvfs", counted)
    monkeypatch.setattr(cache.freespace, "CHECK_INTERVAL_S", 1e9)
    monkeypatch.setattr(cache.freespace, "CHECK_BYTES", 8 * BIG * BLOCK)
    with await DirectoryStore.open(disk / "store", None, MinFree(1 << 20)) as store:
        await put_big(store, *range(24))
    assert 3 <= len(asked) <= 5


async def test_an_idle_store_gives_back_what_others_need(disk: Path):
    store = await SteadyStore.open(disk / "store", None, MinFree(1 << 20))
    with store:
        await put_big(store, *range(20))
        for number in range(20):
            os.utime(chunk_path(disk / "store", number), (number, number))
        fill(disk, 1 << 19)
        await store.look()
        assert free_bytes(disk) >= 1 << 20
        assert wrong(store, range(20)) == [0, 1]
        assert store.problem is None


async def test_a_disk_that_others_have_filled_is_done_without(disk: Path, caplog):
    with await SteadyStore.open(disk / "store", None, MinFree(1 << 20)) as store:
        others = fill(disk, 1 << 18)
        await store.look()
        await put_big(store, 1, 2)
        assert wrong(store, range(1, 3)) == []
        assert "less free than is to stay free" in (store.problem or "")
        others.unlink()
        await store.look()
        assert store.problem is None
        await put_big(store, 3)
        assert chunk_path(disk / "store", 3).exists()
    assert len(warnings(caplog)) == 2


async def test_what_is_in_use_is_not_given_back(disk: Path, monkeypatch):
    monkeypatch.setattr(cache.freespace, "CHECK_BYTES", 0)
    with await DirectoryStore.open(disk / "store", None, MinFree(1 << 20)) as store:
        await put_big(store, 1)
        fill(disk, 1 << 18)
        with chunk_path(disk / "store", 1).open("rb") as reading:
            fcntl.flock(reading, fcntl.LOCK_SH)
            with pytest.raises(StoreFullError):
                await put_big(store, 2)
            assert store.contains(chunk_key(1))


# Disks that fail


async def test_a_full_disk_is_done_without_until_there_is_room(disk: Path, caplog):
    with await SteadyStore.open(disk / "store", None) as store:
        others = fill(disk, 3 * BIG * BLOCK)
        await put_big(store, *range(10))
        assert wrong(store, range(10)) == []
        assert "No space left" in (store.problem or "")
        await store.look()
        assert store.problem is not None, "room for a chunk as large as the one that failed"
        others.unlink()
        await store.look()
        assert store.problem is None
        await put_big(store, 20)
        assert wrong(store, range(20, 21)) == []
        assert chunk_path(disk / "store", 20).exists()
    assert len(warnings(caplog)) == 2


async def test_a_read_only_disk_is_read_and_not_written(disk: Path, caplog):
    with await SteadyStore.open(disk / "store", None) as store:
        await put_big(store, 1, 2)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        await put_big(store, 3)
        assert wrong(store, range(1, 4)) == []
        await store.discard(chunk_key(2))
        assert wrong(store, range(1, 4)) == [2], "what is rotten is not read again"
        data = [chunk_data(number, BIG) for number in range(1, 4)]
        whole = [(chunk_key(number), 0, len(chunk)) for number, chunk in enumerate(data, 1)]
        assert await store.load(whole) == [data[0], None, data[2]]
        await put_big(store, 2)
        assert wrong(store, range(1, 4)) == []
        assert await store.load(whole) == data
        limiter = trio.CapacityLimiter(1)
        for part, wanted in zip(whole, data, strict=True):  # from the disk, from memory
            assert await store.load_for([part], b"".join, limiter) == wanted
        assert await store.load_for(whole, b"".join, limiter) is None
        await store.look()
        assert "Read-only" in (store.problem or "")
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        await store.look()
        assert store.problem is None
    assert len(warnings(caplog)) == 2


@pytest.mark.parametrize("again", ["empty", "another"])
async def test_a_folder_that_is_removed_is_made_again(tmp_path: Path, caplog, again: str):
    path = tmp_path / "store"
    with await SteadyStore.open(path, None) as store:
        await put_big(store, 1)
        shutil.rmtree(path)
        if again == "another":
            with await DirectoryStore.open(path, None):
                pass
        await put_big(store, 1)
        assert wrong(store, range(1, 2)) == []
        assert store.problem is not None
        await store.look()
        assert store.problem is None
        await put_big(store, 1)
        assert wrong(store, range(1, 2)) == []
        assert chunk_path(path, 1).exists()
    assert len(warnings(caplog)) == 2


async def test_a_folder_that_cannot_be_used_at_first_is_used_later(tmp_path: Path, caplog):
    path = tmp_path / "store"
    path.mkdir(mode=0o777)
    path.chmod(0o777)
    with await SteadyStore.open(path, None) as store:
        assert "mode 0777" in (store.problem or "")
        await put_big(store, 1)
        assert list(path.iterdir()) == []
        await store.look()
        assert store.problem is not None
        path.chmod(0o700)
        await store.look()
        assert store.problem is None
        flight = store.flights.claim(chunk_key(5))
        assert flight is not None
        with flight:
            assert len(list((path / "locks").iterdir())) == 1
    assert [line.split(":")[0] for line in warnings(caplog)] == [
        "mounting without a cache on disk",
        f"the cache in {path} works again",
    ]


async def test_what_cannot_be_read_is_replaced(tmp_path: Path, monkeypatch):
    with await SteadyStore.open(tmp_path, None) as store:
        await put_big(store, 1)
        inode = chunk_path(tmp_path, 1).stat().st_ino

        def bad_block(*_arguments: object) -> bytes:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as broken:
            broken.setattr(os, "pread", bad_block)
            assert store.read(chunk_key(1), 0, 1) is None
        await put_big(store, 1)
        assert chunk_path(tmp_path, 1).stat().st_ino != inode
        assert wrong(store, range(1, 2)) == []


async def test_it_is_looked_after_in_the_background(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(cache.steady, "LOOK_INTERVAL_S", 0.01)
    path = tmp_path / "store"
    async with trio.open_nursery() as nursery:
        with await SteadyStore.open(path, None) as store:
            shutil.rmtree(path)
            await put_big(store, 1)
            assert store.problem is not None
            nursery.start_soon(store.tend)
            with trio.fail_after(WITHIN_S):
                while store.problem is not None:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

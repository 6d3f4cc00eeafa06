"""The store in a folder: opening, limits between stores, and what the disk may do to it."""

import errno
import fcntl
import os
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

import cache.chunkfiles
import cache.directory
import cache.folder
import cache.ledger
import cache.pace
from cache.chunkfiles import ChunkFiles
from cache.directory import DirectoryStore
from cache.errors import CacheOpenError, CacheWriteError, ChunkTooLargeError, StoreFullError
from cache.eviction import EXACT_EVICTION_CHUNKS, charged_bytes
from cache.flights import Flights
from cache.pace import IN_PLACE_BYTES, DiskPace
from tests.support.cache_chunks import BLOCK, charged_on_disk, chunk_data, chunk_key, chunk_path

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def held(store: DirectoryStore, numbers: range) -> list[int]:
    return [number for number in numbers if store.contains(chunk_key(number))]


async def put_blocks(store: DirectoryStore, *numbers: int) -> None:
    for number in numbers:
        await store.put(chunk_key(number), chunk_data(number, blocks=1))


def make_older(path: Path, number: int, seconds: int) -> None:
    """As if the chunk had been used last ``seconds`` ago."""
    then = time.time() - seconds
    os.utime(chunk_path(path, number), (then, then))


# Opening


async def test_a_new_store_is_for_its_owner_alone(tmp_path: Path):
    path = tmp_path / "a" / "b"
    with await DirectoryStore.open(path, None) as store:
        await put_blocks(store, 1)
    for found in [path, *path.rglob("*")]:
        assert stat.S_IMODE(found.stat().st_mode) == (0o700 if found.is_dir() else 0o600)
        assert found.stat().st_uid == os.geteuid()


async def test_what_one_store_wrote_the_next_one_reads(tmp_path: Path):
    with await DirectoryStore.open(tmp_path, None) as store:
        await put_blocks(store, 1, 2)
    with await DirectoryStore.open(tmp_path, None) as store:
        assert store.read(chunk_key(2), 0, 50) == chunk_data(2, blocks=1)[:50]
        assert store.usage_bytes() == 2 * BLOCK
        assert store.statistics().puts == 0


async def test_a_readable_empty_folder_becomes_private(tmp_path: Path):
    path = tmp_path / "cache"
    path.mkdir(mode=0o755)
    with await DirectoryStore.open(path, None):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
async def test_a_folder_that_others_may_write_is_refused(tmp_path: Path, mode: int):
    path = tmp_path / "cache"
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(CacheOpenError, match=f"mode {mode:04o}"):
        await DirectoryStore.open(path, None)
    assert list(path.iterdir()) == []


@needs_root
async def test_a_folder_of_another_user_is_refused(tmp_path: Path):
    with await DirectoryStore.open(tmp_path / "cache", None):
        pass
    os.chown(tmp_path / "cache", 12345, 12345)
    with pytest.raises(CacheOpenError, match="belongs to user 12345"):
        await DirectoryStore.open(tmp_path / "cache", None)


async def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "love").write_text("dear")
    with pytest.raises(CacheOpenError, match="letters"):
        await DirectoryStore.open(tmp_path, 0)
    assert [str(found.relative_to(tmp_path)) for found in sorted(tmp_path.rglob("*"))] == [
        "letters",
        "letters/love",
    ]


@pytest.mark.parametrize("line", [b"lazyfs chunk store 2\n", b"", b"lazyfs chunk store 1\n more"])
async def test_another_format_is_refused(tmp_path: Path, line: bytes):
    with await DirectoryStore.open(tmp_path, None) as store:
        await put_blocks(store, 1)
    (tmp_path / "format").write_bytes(line)
    with pytest.raises(CacheOpenError, match="another format"):
        await DirectoryStore.open(tmp_path, None)
    assert chunk_path(tmp_path, 1).exists()


async def test_a_file_is_no_store(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheOpenError):
        await DirectoryStore.open(tmp_path / "file", None)
    with pytest.raises(CacheOpenError):
        await DirectoryStore.open(tmp_path / "file" / "below", None)


async def test_a_smaller_limit_evicts_on_opening(tmp_path: Path):
    with await DirectoryStore.open(tmp_path, None) as store:
        await put_blocks(store, 1, 2, 3, 4)
    for number in (1, 2, 3, 4):
        make_older(tmp_path, number, 100 - number)
    with await DirectoryStore.open(tmp_path, 2 * BLOCK) as store:
        assert held(store, range(1, 5)) == [3, 4]
        assert store.usage_bytes() == charged_on_disk(tmp_path) == 2 * BLOCK


async def test_a_relative_path_may_be_left(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with await DirectoryStore.open(Path("store"), None) as store:
        monkeypatch.chdir("/")
        await put_blocks(store, 1)
        assert store.contains(chunk_key(1))
        assert store.locks_directory == tmp_path / "store" / "locks"


# The limit, last use and chunks in use


async def test_two_stores_on_one_folder_keep_the_limit_together(tmp_path: Path):
    limit = 4 * BLOCK
    with (
        await DirectoryStore.open(tmp_path, limit) as one,
        await DirectoryStore.open(tmp_path, limit) as other,
    ):
        for number in range(0, 20, 2):
            await put_blocks(one, number)
            await put_blocks(other, number + 1)
            assert charged_on_disk(tmp_path) == one.usage_bytes() <= limit
        assert held(one, range(20)) == held(other, range(20)) == [16, 17, 18, 19]


async def test_a_use_counts_in_other_processes_too(tmp_path: Path):
    with (
        await DirectoryStore.open(tmp_path, 2 * BLOCK) as reader,
        await DirectoryStore.open(tmp_path, 2 * BLOCK) as writer,
    ):
        await put_blocks(reader, 1, 2)
        make_older(tmp_path, 1, 3600)
        make_older(tmp_path, 2, 1800)
        assert reader.read(chunk_key(1), 0, 1) is not None
        await put_blocks(writer, 3)
        assert held(writer, range(1, 4)) == [1, 3]


async def test_last_use_is_written_at_most_once_a_minute(tmp_path: Path):
    with await DirectoryStore.open(tmp_path, None) as store:
        await put_blocks(store, 1)
        make_older(tmp_path, 1, 61)
        before = chunk_path(tmp_path, 1).stat().st_mtime_ns
        store.read(chunk_key(1), 0, 1)
        stamped = chunk_path(tmp_path, 1).stat().st_mtime_ns
        assert stamped - before > 60 * 10**9
        store.read(chunk_key(1), 0, 1)
        assert chunk_path(tmp_path, 1).stat().st_mtime_ns == stamped
        make_older(tmp_path, 1, -3600)  # a clock that went back
        store.read(chunk_key(1), 0, 1)
        assert chunk_path(tmp_path, 1).stat().st_mtime < time.time() + 1


async def test_a_chunk_being_read_is_passed_over(tmp_path: Path):
    with await DirectoryStore.open(tmp_path, 3 * BLOCK) as store:
        await put_blocks(store, 1, 2, 3)
        reading = os.open(chunk_path(tmp_path, 1), os.O_RDONLY)
        fcntl.flock(reading, fcntl.LOCK_SH)
        await put_blocks(store, 4)
        assert held(store, range(1, 5)) == [1, 3, 4]
        os.close(reading)
        await put_blocks(store, 5)
        assert held(store, range(1, 6)) == [3, 4, 5]


async def test_reading_locks_the_chunk_while_it_reads(tmp_path: Path, monkeypatch):
    tried: list[bool] = []

    def pread(descriptor: int, length: int, offset: int) -> bytes:
        evictor = os.open(chunk_path(tmp_path, 1), os.O_RDONLY)
        try:
            fcntl.flock(evictor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            tried.append(True)
        except BlockingIOError:
            tried.append(False)
        os.close(evictor)
        return b"x" * length

    with await DirectoryStore.open(tmp_path, None) as store:
        await put_blocks(store, 1)
        monkeypatch.setattr(os, "pread", pread)
        assert store.read(chunk_key(1), 0, 3) == b"xxx"
    assert tried == [False]


async def test_a_store_full_of_chunks_in_use_says_so_and_takes_chunks_again_later(tmp_path: Path):
    with await DirectoryStore.open(tmp_path, 2 * BLOCK) as store:
        await put_blocks(store, 1, 2)
        readings = [os.open(chunk_path(tmp_path, number), os.O_RDONLY) for number in (1, 2)]
        for reading in readings:
            fcntl.flock(reading, fcntl.LOCK_SH)
        with pytest.raises(StoreFullError):
            await put_blocks(store, 3)
        assert store.usage_bytes() == charged_on_disk(tmp_path) == 2 * BLOCK
        assert store.statistics().errors == 1
        for reading in readings:
            os.close(reading)
        await put_blocks(store, 3)
        assert held(store, range(1, 4)) == [2, 3]


async def test_a_large_store_frees_a_tenth_at_once(tmp_path: Path):
    count = EXACT_EVICTION_CHUNKS + 44
    with await DirectoryStore.open(tmp_path, count * BLOCK) as store:
        await put_blocks(store, *range(count + 1))
        assert store.usage_bytes() == charged_on_disk(tmp_path)
        assert store.statistics().evictions == 1 + count // 10
        assert held(store, range(count + 1)) == list(range(1 + count // 10, count + 1))


async def test_what_is_being_written_counts_and_a_killed_writer_does_not(tmp_path: Path):
    with await DirectoryStore.open(tmp_path, 4 * BLOCK) as store:
        writer = ChunkFiles.open(tmp_path, 4 * BLOCK)
        with writer._ledger.locked() as account:
            descriptor = os.open(tmp_path / "tmp" / f"writing.{2 * BLOCK}", os.O_CREAT)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            account.used_bytes += 2 * BLOCK
        await put_blocks(store, 1, 2, 3)  # evicts, so counts anew
        assert held(store, range(1, 4)) == [2, 3]
        assert store.usage_bytes() == 4 * BLOCK
        os.close(descriptor)  # as the kernel does for a killed process
        writer.close()
        with await DirectoryStore.open(tmp_path, None) as next_store:
            assert next_store.usage_bytes() == 2 * BLOCK
        assert list((tmp_path / "tmp").iterdir()) == []
        await put_blocks(store, 4, 5)
        assert held(store, range(1, 6)) == [2, 3, 4, 5]


# The count


@pytest.mark.parametrize("usage", [None, b"", b"garbage", bytes(40), b"\xff" * 40])
async def test_a_lost_count_is_made_anew(tmp_path: Path, usage: bytes | None):
    with await DirectoryStore.open(tmp_path, 4 * BLOCK) as store:
        await put_blocks(store, 1, 2, 3)
        if usage is None:
            (tmp_path / "usage").unlink()
        else:
            (tmp_path / "usage").write_bytes(usage)
        await put_blocks(store, 4)
        assert store.usage_bytes() == 4 * BLOCK
        await put_blocks(store, 5)
        assert held(store, range(1, 6)) == [2, 3, 4, 5]


async def test_after_a_reboot_the_files_are_counted_anew(tmp_path: Path, monkeypatch):
    with await DirectoryStore.open(tmp_path, None) as store:
        await put_blocks(store, 1, 2)
        os.truncate(chunk_path(tmp_path, 1), 0)  # what a power cut leaves
    with await DirectoryStore.open(tmp_path, None) as store:
        assert store.usage_bytes() == 2 * BLOCK
    monkeypatch.setattr(cache.ledger, "_boot_id", lambda: b"another boot....")
    with await DirectoryStore.open(tmp_path, None) as store:
        assert store.usage_bytes() == BLOCK


async def test_chunks_removed_by_hand_are_noticed_when_it_matters(tmp_path: Path):
    with await DirectoryStore.open(tmp_path, 3 * BLOCK) as store:
        await put_blocks(store, 1, 2, 3)
        chunk_path(tmp_path, 2).unlink()
        await put_blocks(store, 4)
        assert held(store, range(1, 5)) == [1, 3, 4]
        assert store.usage_bytes() == 3 * BLOCK
        assert store.statistics().evictions == 0


# What the disk may do


async def test_a_torn_chunk_is_absent_and_heals(tmp_path: Path):
    with await DirectoryStore.open(tmp_path, None) as store:
        data = chunk_data(1, blocks=2)
        await store.put(chunk_key(1), data)
        for size in (0, 1, BLOCK, len(data) - 1):
            os.truncate(chunk_path(tmp_path, 1), size)
            assert store.read(chunk_key(1), 0, len(data)) is None
            assert store.contains(chunk_key(1)) == (size > 0)
            await store.put(chunk_key(1), data)
            assert store.read(chunk_key(1), 0, len(data)) == data
        assert store.statistics().errors == 0


async def test_a_chunk_that_shrinks_while_it_is_read_is_absent(tmp_path: Path, monkeypatch):
    with await DirectoryStore.open(tmp_path, None) as store:
        await put_blocks(store, 1)
        monkeypatch.setattr(os, "pread", lambda descriptor, length, offset: b"x" * (length - 1))
        assert store.read(chunk_key(1), 0, 10) is None
        assert store.statistics().hits == 0


async def test_an_unreadable_chunk_is_absent_and_counted(tmp_path: Path):
    with await DirectoryStore.open(tmp_path, None) as store:
        chunk_path(tmp_path, 1).mkdir(parents=True)
        assert store.read(chunk_key(1), 0, 1) is None
        assert not store.contains(chunk_key(1))
        assert store.statistics().errors == 1
        with pytest.raises(CacheWriteError):
            await put_blocks(store, 1)
        assert list((tmp_path / "tmp").iterdir()) == []
        assert store.usage_bytes() == 0


async def test_a_link_in_the_place_of_a_chunk_is_not_followed(tmp_path: Path):
    (tmp_path / "secret").write_bytes(b"secret")
    with await DirectoryStore.open(tmp_path / "store", None) as store:
        chunk_path(tmp_path / "store", 1).parent.mkdir(parents=True)
        chunk_path(tmp_path / "store", 1).symlink_to(tmp_path / "secret")
        assert store.read(chunk_key(1), 0, 6) is None
        assert not store.contains(chunk_key(1))


STEPS = ["open", "write", "utime", "rename", "pwrite", "unlink", "scandir"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
async def test_a_failing_disk_is_an_error_and_leaves_the_store_usable(
    tmp_path: Path, monkeypatch, step: str, code: int
):
    with await DirectoryStore.open(tmp_path, 3 * BLOCK) as store:
        await put_blocks(store, 1, 2, 3)

        def fail(*_args, **_options):
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as broken:
            broken.setattr(os, step, fail)
            with pytest.raises(CacheWriteError):
                await put_blocks(store, 4)
        await put_blocks(store, 5)
        assert store.usage_bytes() == charged_on_disk(tmp_path) <= 3 * BLOCK
        assert list((tmp_path / "tmp").iterdir()) == []
        assert store.contains(chunk_key(5))
        for number in held(store, range(1, 6)):
            data = chunk_data(number, blocks=1)
            assert store.read(chunk_key(number), 0, len(data)) == data


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M,mode=700", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


@needs_root
async def test_a_full_disk_stores_nothing_and_keeps_what_it_has(small_disk: Path):
    with await DirectoryStore.open(small_disk, None) as store:
        await put_blocks(store, 1)
        used = store.usage_bytes()
        with pytest.raises(CacheWriteError, match="No space left"):
            await store.put(chunk_key(2), bytes(2 << 20))
        assert store.usage_bytes() == charged_on_disk(small_disk) == used
        assert held(store, range(3)) == [1]
        await put_blocks(store, 3)
        assert held(store, range(4)) == [1, 3]


@needs_root
async def test_a_disk_that_became_read_only_is_still_read(small_disk: Path):
    with await DirectoryStore.open(small_disk, None) as store:
        await put_blocks(store, 1)
        make_older(small_disk, 1, 3600)
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
        assert store.read(chunk_key(1), 0, 9) == chunk_data(1, blocks=1)[:9]
        with pytest.raises(CacheWriteError):
            await put_blocks(store, 2)
        with pytest.raises(CacheWriteError):
            await store.discard(chunk_key(1))
        flights = Flights(store.locks_directory)
        flight = flights.claim(chunk_key(2))
        assert flight is not None
        with flight:
            assert flights.lock_failures == 1


async def test_a_store_that_was_deleted_reads_nothing_and_refuses_chunks(tmp_path: Path):
    path = tmp_path / "store"
    with await DirectoryStore.open(path, None) as store:
        await put_blocks(store, 1)
        for found in sorted(path.rglob("*"), reverse=True):
            found.rmdir() if found.is_dir() else found.unlink()
        path.rmdir()
        assert store.read(chunk_key(1), 0, 1) is None
        with pytest.raises(CacheWriteError):
            await put_blocks(store, 1)


async def test_a_stopped_process_that_holds_the_store_costs_an_error_not_a_hang(
    tmp_path: Path, monkeypatch
):
    with await DirectoryStore.open(tmp_path, None) as store:
        await put_blocks(store, 1)
        monkeypatch.setattr(cache.ledger, "PATIENCE_S", 0.01)
        holder = os.open(tmp_path / "usage", os.O_RDWR)
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(CacheWriteError, match="held the lock"):
            await put_blocks(store, 2)
        assert store.read(chunk_key(1), 0, 1) is not None  # readers do not need the lock
        os.close(holder)
        await put_blocks(store, 2)


async def test_a_put_once_begun_ends_although_cancelled(tmp_path: Path, monkeypatch):
    begun = trio.Event()
    go_on = threading.Event()
    token = trio.lowlevel.current_trio_token()
    write_all = cache.folder.write_all

    def slow(descriptor: int, data: bytes) -> None:
        token.run_sync_soon(begun.set)
        go_on.wait()
        write_all(descriptor, data)

    monkeypatch.setattr(cache.chunkfiles, "write_all", slow)
    with await DirectoryStore.open(tmp_path, None) as store:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(put_blocks, store, 1)
            await begun.wait()
            nursery.cancel_scope.cancel()
            go_on.set()
        assert charged_bytes(1) == charged_on_disk(tmp_path) == store.usage_bytes()
        assert held(store, range(3)) == [1]


async def test_what_is_stored_at_once_takes_one_visit_to_a_thread(tmp_path: Path, monkeypatch):
    put_all = cache.directory._put_all
    visits = []

    def counting(files, chunks):
        visits.append(len(chunks))
        return put_all(files, chunks)

    monkeypatch.setattr(cache.directory, "_put_all", counting)
    too_large = []
    with await DirectoryStore.open(tmp_path, 8 << 20) as store:

        async def put_too_much() -> None:
            with pytest.raises(ChunkTooLargeError) as caught:
                await store.put(chunk_key(9), bytes(9 << 20))
            too_large.append(caught)

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(put_blocks, store, number)
            nursery.start_soon(put_too_much)
        assert held(store, range(10)) == list(range(6))
    assert len(too_large) == 1
    assert sum(visits) == 7
    assert len(visits) <= 2  # what is too long ends a group, wherever it comes


async def test_chunks_that_wait_are_stored_though_the_store_is_closed(tmp_path: Path, monkeypatch):
    go_on = threading.Event()
    put_all = cache.directory._put_all

    def slow(files, chunks):
        go_on.wait()
        return put_all(files, chunks)

    monkeypatch.setattr(cache.directory, "_put_all", slow)
    monkeypatch.setattr(cache.directory, "MAX_WRITERS", 1)
    with await DirectoryStore.open(tmp_path, None) as store:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(put_blocks, store, 0)
            await trio.testing.wait_all_tasks_blocked()
            for number in (1, 2):
                nursery.start_soon(put_blocks, store, number)
            await trio.testing.wait_all_tasks_blocked()
            store.close()
            go_on.set()
    with await DirectoryStore.open(tmp_path, None) as store:
        assert held(store, range(3)) == [0, 1, 2]


async def test_of_two_that_write_one_chunk_the_first_file_stays(tmp_path: Path, monkeypatch):
    """It may be in use by then, and what is in use is neither replaced nor charged to nobody."""
    write_all = cache.folder.write_all
    with (
        await DirectoryStore.open(tmp_path, None) as slow,
        await DirectoryStore.open(tmp_path, None) as quick,
    ):

        def overtaken(descriptor: int, data: bytes) -> None:
            monkeypatch.setattr(cache.chunkfiles, "write_all", write_all)
            quick._files.put(chunk_key(1).relative_path, data)
            os.link(chunk_path(tmp_path, 1), tmp_path / "seen")
            write_all(descriptor, data)

        monkeypatch.setattr(cache.chunkfiles, "write_all", overtaken)
        await put_blocks(slow, 1)
        assert chunk_path(tmp_path, 1).samefile(tmp_path / "seen")
        assert slow.usage_bytes() == charged_on_disk(tmp_path) == BLOCK
        assert held(slow, range(3)) == [1]


async def test_old_lock_files_go_and_held_ones_stay(tmp_path: Path):
    with await DirectoryStore.open(tmp_path, None) as store:
        stale = store.locks_directory / chunk_key(1).file_name
        stale.touch()
        flights = Flights(store.locks_directory)
        flight = flights.claim(chunk_key(2))
        assert flight is not None
        with flight:
            with await DirectoryStore.open(tmp_path, None):
                pass
            names = [found.name for found in store.locks_directory.iterdir()]
            assert names == [chunk_key(2).file_name]


async def test_what_is_on_disk_only_is_not_waited_for_in_place(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(cache.chunkfiles, "is_at_hand", lambda *_: False)
    data = chunk_data(1, blocks=40)
    with await DirectoryStore.open(tmp_path / "store", None) as store:
        await store.put(chunk_key(1), data)
        with pytest.raises(BlockingIOError):
            store.read_nowait(chunk_key(1), 0, 100)
        assert await store.load([(chunk_key(1), 0, len(data))]) == [data]
        with pytest.raises(BlockingIOError):
            store.read_nowait(chunk_key(1), 0, len(data))
        with pytest.raises(BlockingIOError):
            store.read_nowait(chunk_key(1), 0, 100)  # the pace is that of small reads
        assert store.read_nowait(chunk_key(2), 0, 100) is None
        assert store.read_nowait(chunk_key(1), 0, len(data) + 1) is None


async def test_the_pace_is_that_of_what_was_not_at_hand(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(cache.chunkfiles, "is_at_hand", lambda *_: False)
    monkeypatch.setattr(cache.chunkfiles, "AT_HAND_S", 1000.0)
    monkeypatch.setattr(cache.pace, "QUICK_S", 1000.0)
    data = chunk_data(1)
    part = (chunk_key(1), 0, len(data))
    with await DirectoryStore.open(tmp_path / "store", None) as store:
        await store.put(chunk_key(1), data)
        assert store.read(*part) == data
        assert await store.load_for([part], list, trio.CapacityLimiter(1)) == [data]
        with pytest.raises(BlockingIOError):  # these may have been in memory
            store.read_nowait(*part)
        assert await store.load([part]) == [data]
        assert store.read_nowait(*part) == data


async def test_pages_that_the_kernel_has_dropped_are_read_again(tmp_path: Path):
    data = chunk_data(1, blocks=40)
    with await DirectoryStore.open(tmp_path / "store", None) as store:
        await store.put(chunk_key(1), data)
        descriptor = os.open(chunk_path(tmp_path / "store", 1), os.O_RDWR)
        try:
            for _ in range(3):
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                try:
                    found = store.read_nowait(chunk_key(1), 4096, 100_000)
                except BlockingIOError:
                    (found,) = await store.load([(chunk_key(1), 4096, 100_000)])
                assert found == data[4096:104_096]
        finally:
            os.close(descriptor)


def test_a_quick_disk_is_waited_for_and_a_slow_one_is_not():
    pace = DiskPace()
    assert not pace.may_wait(4096)
    pace.note(4096, 0.0001)
    assert pace.may_wait(4096)
    assert pace.may_wait(IN_PLACE_BYTES)
    assert not pace.may_wait(IN_PLACE_BYTES + 1)
    pace.note(IN_PLACE_BYTES + 1, 10.0)  # says nothing of small reads
    assert pace.may_wait(4096)
    pace.note(4096, 0.01)
    assert not pace.may_wait(4096)
    for _ in range(30):
        pace.note(4096, 0.0001)
    assert pace.may_wait(4096)

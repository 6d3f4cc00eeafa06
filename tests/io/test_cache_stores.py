"""What every chunk store promises, tried on each of them."""

import dataclasses
import shutil
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.counters import StoreCounters
from cache.directory import DirectoryStore
from cache.errors import ChunkTooLargeError, InvalidChunkKeyError
from cache.eviction import charged_bytes
from cache.key import ChunkKey
from cache.memory import MemoryStore
from cache.store import ChunkStore, StoreStatistics
from tests.support.cache_chunks import BLOCK, charged_on_disk, chunk_data, chunk_key


async def open_store(kind: str, path: Path, limit_bytes: int | None = None) -> ChunkStore:
    if kind == "memory":
        return MemoryStore(limit_bytes)
    return await DirectoryStore.open(path / "store", limit_bytes)


@pytest.fixture(params=["memory", "directory"])
def kind(request) -> str:
    return str(request.param)


async def test_a_chunk_comes_back_in_any_range(kind: str, tmp_path: Path):
    store = await open_store(kind, tmp_path)
    data = chunk_data(1)
    assert not store.contains(chunk_key(1))
    await store.put(chunk_key(1), data)
    assert store.contains(chunk_key(1))
    assert store.read(chunk_key(1), 0, len(data)) == data
    assert store.read(chunk_key(1), 17, 100) == data[17:117]
    assert store.read(chunk_key(1), len(data), 0) == b""
    assert store.statistics() == StoreStatistics(
        hits=3, puts=1, bytes_read=len(data) + 100, bytes_written=len(data)
    )
    assert store.usage_bytes() == charged_bytes(len(data))


async def test_all_ways_to_read_agree(kind: str, tmp_path: Path):
    store = await open_store(kind, tmp_path)
    data = chunk_data(1)
    await store.put(chunk_key(1), data)
    for offset, length in ((0, len(data)), (17, 100), (len(data), 0), (0, len(data) + 1)):
        wanted = None if offset + length > len(data) else data[offset : offset + length]
        assert await store.load([(chunk_key(1), offset, length)]) == [wanted]
        assert store.read_nowait(chunk_key(1), offset, length) == wanted
    assert await store.load([(chunk_key(2), 0, 1)]) == [None]
    assert store.read_nowait(chunk_key(2), 0, 1) is None


async def test_several_parts_are_loaded_together(kind: str, tmp_path: Path):
    store = await open_store(kind, tmp_path)
    one, three = chunk_data(1, blocks=40), chunk_data(3)
    await store.put(chunk_key(1), one)
    await store.put(chunk_key(3), three)
    parts = [
        (chunk_key(3), 5, 10),
        (chunk_key(2), 0, 1),
        (chunk_key(1), 100, 100_000),
        (chunk_key(3), 0, len(three) + 1),
    ]
    assert await store.load(parts) == [three[5:15], None, one[100:100_100], None]
    assert await store.load([]) == []


async def test_work_is_done_on_parts_in_another_thread_if_all_are_there(kind: str, tmp_path: Path):
    store = await open_store(kind, tmp_path)
    one, two = chunk_data(1, blocks=40), chunk_data(2)
    await store.put(chunk_key(1), one)
    await store.put(chunk_key(2), two)
    limiter = trio.CapacityLimiter(1)
    here = threading.get_ident()

    def joined(found: Sequence[bytes]) -> bytes:
        assert threading.get_ident() != here
        assert limiter.borrowed_tokens == 1
        return b"".join(found)

    parts = [(chunk_key(2), 1, 10), (chunk_key(1), 0, len(one))]
    assert await store.load_for(parts, joined, limiter) == two[1:11] + one
    for gone in ((chunk_key(3), 0, 1), (chunk_key(2), 0, len(two) + 1)):
        assert await store.load_for([*parts, gone], joined, limiter) is None

    def fail(found: Sequence[bytes]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store.load_for(parts, fail, limiter)
    assert not limiter.borrowed_tokens


async def test_absent_and_short_are_none_and_never_partial(kind: str, tmp_path: Path):
    store = await open_store(kind, tmp_path)
    assert store.read(chunk_key(1), 0, 1) is None
    await store.put(chunk_key(1), b"x" * 100)
    assert store.read(chunk_key(1), 0, 101) is None
    assert store.read(chunk_key(1), 99, 2) is None
    assert store.read(chunk_key(1), 1 << 62, 1) is None
    assert store.read(chunk_key(1), 0, 1 << 62) is None
    assert store.statistics().misses == 5
    assert store.statistics().hits == 0


async def test_forms_of_one_digest_are_apart(kind: str, tmp_path: Path):
    store = await open_store(kind, tmp_path)
    keys = [chunk_key(1)._replace(form=form) for form in ("data", "frame", "hash-0", "hash-1")]
    for number, key in enumerate(keys):
        await store.put(key, bytes([number]) * 10)
    for number, key in enumerate(keys):
        assert store.read(key, 0, 10) == bytes([number]) * 10


async def test_storing_again_changes_nothing_but_heals_another_size(kind: str, tmp_path: Path):
    store = await open_store(kind, tmp_path)
    await store.put(chunk_key(1), b"short")
    await store.put(chunk_key(1), b"other")
    assert store.read(chunk_key(1), 0, 5) == b"short"
    assert store.statistics().puts == 1
    data = chunk_data(1)
    await store.put(chunk_key(1), data)
    assert store.read(chunk_key(1), 0, len(data)) == data
    assert store.usage_bytes() == charged_bytes(len(data))


async def test_a_discarded_chunk_is_gone_and_not_charged(kind: str, tmp_path: Path):
    store = await open_store(kind, tmp_path)
    await store.put(chunk_key(1), b"rotten")
    await store.discard(chunk_key(1))
    await store.discard(chunk_key(1))
    assert store.read(chunk_key(1), 0, 6) is None
    assert store.usage_bytes() == 0
    assert store.statistics().discards == 1
    await store.put(chunk_key(1), b"sounds")
    assert store.read(chunk_key(1), 0, 6) == b"sounds"


async def test_the_least_recently_used_goes_first(kind: str, tmp_path: Path):
    store = await open_store(kind, tmp_path, limit_bytes=3 * BLOCK)
    for number in (1, 2, 3):
        await store.put(chunk_key(number), chunk_data(number, blocks=1))
    assert store.read(chunk_key(1), 0, 1) is not None
    await store.put(chunk_key(4), chunk_data(4, blocks=1))
    assert [store.contains(chunk_key(number)) for number in (1, 2, 3, 4)] == [1, 0, 1, 1]
    await store.put(chunk_key(5), chunk_data(5, blocks=2))
    assert [store.contains(chunk_key(number)) for number in (1, 3, 4, 5)] == [0, 0, 1, 1]
    assert store.statistics().evictions == 3
    assert store.statistics().bytes_evicted == 3 * BLOCK
    assert store.usage_bytes() == 3 * BLOCK


async def test_a_chunk_larger_than_the_limit_evicts_nothing(kind: str, tmp_path: Path):
    store = await open_store(kind, tmp_path, limit_bytes=2 * BLOCK)
    await store.put(chunk_key(1), b"small")
    with pytest.raises(ChunkTooLargeError):
        await store.put(chunk_key(2), bytes(2 * BLOCK + 1))
    assert store.contains(chunk_key(1))
    assert store.statistics().errors == 1


async def test_a_store_of_no_bytes_holds_nothing(kind: str, tmp_path: Path):
    store = await open_store(kind, tmp_path, limit_bytes=0)
    with pytest.raises(ChunkTooLargeError):
        await store.put(chunk_key(1), b"x")
    assert store.read(chunk_key(1), 0, 1) is None


async def test_an_empty_chunk_is_not_stored(kind: str, tmp_path: Path):
    store = await open_store(kind, tmp_path)
    await store.put(chunk_key(1), b"")
    assert not store.contains(chunk_key(1))


async def test_bad_arguments_are_refused(kind: str, tmp_path: Path):
    store = await open_store(kind, tmp_path)
    bad = ChunkKey("sha512", "../../../etc/passwd", "data")
    with pytest.raises(InvalidChunkKeyError):
        store.read(bad, 0, 1)
    with pytest.raises(InvalidChunkKeyError):
        store.contains(bad)
    with pytest.raises(InvalidChunkKeyError):
        await store.put(bad, b"x")
    with pytest.raises(InvalidChunkKeyError):
        await store.discard(bad)
    for offset, length in ((-1, 1), (0, -1)):
        with pytest.raises(ValueError):
            store.read(chunk_key(1), offset, length)
    with pytest.raises(ValueError):
        await open_store(kind, tmp_path / "other", limit_bytes=-1)


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["put", "put", "read", "discard"]), st.integers(0, 7)), max_size=40
)


@settings(max_examples=60)
@given(OPERATIONS, st.integers(0, 16))
def test_both_stores_do_the_same(operations: list[tuple[str, int]], limit_blocks: int):
    async def compare(path: Path) -> None:
        memory = MemoryStore(limit_blocks * BLOCK)
        with await DirectoryStore.open(path, limit_blocks * BLOCK) as directory:
            stores: tuple[ChunkStore, ...] = (memory, directory)
            for operation, number in operations:
                key, data = chunk_key(number), chunk_data(number)
                for store in stores:
                    if operation == "put" and len(data) <= limit_blocks * BLOCK:
                        await store.put(key, data)
                    elif operation == "discard":
                        await store.discard(key)
                    else:
                        assert store.read(key, 5, 50) in (None, data[5:55])
                assert memory.statistics() == directory.statistics()
                assert memory.usage_bytes() == directory.usage_bytes() == charged_on_disk(path)
                present = [[store.contains(chunk_key(n)) for n in range(8)] for store in stores]
                assert present[0] == present[1]

    folder = tempfile.mkdtemp()
    try:
        trio.run(compare, Path(folder))
    finally:
        shutil.rmtree(folder)


def test_counters_have_the_fields_of_the_statistics():
    names = [field.name for field in dataclasses.fields(StoreCounters)]
    assert names == [field.name for field in dataclasses.fields(StoreStatistics)]

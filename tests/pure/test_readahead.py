"""How far ahead of whom to fetch."""

from hypothesis import given
from hypothesis import strategies as st

from lazyfs.layer.ahead import LayerAhead
from lazyfs.layer.line import Line
from lazyfs.layer.readahead import LEAST_RUN_BYTES, SLACK_BYTES, ReadAhead
from lazyfs.seekable.chunktable import ChunkTable

KIB = 1 << 10
MIB = 1 << 20
FAR = 4 * SLACK_BYTES
CHUNK = 64 * KIB
SIZE = 64 * MIB


def layer() -> tuple[LayerAhead, list[tuple[int, int]]]:
    """A layer of small chunks, and what is begun for it."""
    begun: list[tuple[int, int]] = []
    starts = range(0, SIZE, CHUNK)
    table = ChunkTable(SIZE, starts, [*starts, SIZE], None)
    ahead = LayerAhead(table, SIZE, Line(), lambda offset, length: begun.append((offset, length)))
    return ahead, begun


def test_nothing_for_who_reads_here_and_there():
    readers = ReadAhead()
    for number in range(1000):
        place = number * 7919 % 997 * FAR
        assert readers.used(place, 4096, 16 * MIB) is None


def test_the_window_grows_with_what_was_read_up_to_its_limit():
    readers = ReadAhead()
    windows = []
    for offset in range(0, 8 * MIB, 128 * KIB):
        found = readers.used(offset, 128 * KIB, 2 * MIB)
        windows.append(0 if found is None else found[1].end - (offset + 128 * KIB))
    assert windows[:4] == [0, 128 * KIB, 256 * KIB, 384 * KIB]
    assert windows[-1] == max(windows) == 2 * MIB


def test_a_jump_begins_anew_and_several_readers_are_told_apart():
    readers = ReadAhead()
    for offset in range(0, 4 * MIB, 128 * KIB):
        for base in (0, 100 * MIB, 200 * MIB):
            readers.used(base + offset, 128 * KIB, 16 * MIB)
    for base in (0, 100 * MIB, 200 * MIB):
        found = readers.used(base + 4 * MIB, 128 * KIB, 16 * MIB)
        assert found is not None
        assert found[1].length > 3 * MIB
    assert readers.used(300 * MIB, 128 * KIB, 16 * MIB) is None


def test_each_chunk_is_begun_once_and_none_that_the_reader_is_at():
    ahead, begun = layer()
    for offset in range(0, 8 * MIB, 128 * KIB):
        before = len(begun)
        ahead.used(
            offset,
            100 * KIB,
        )
        assert all(start >= offset + 100 * KIB for start, _ in begun[before:])
    covered = [at for start, length in begun for at in range(start, start + length, CHUNK)]
    assert len(covered) == len(set(covered))
    assert all(start % CHUNK == length % CHUNK == 0 for start, length in begun)
    assert sum(length for _, length in begun) > 6 * MIB


def test_at_the_end_of_the_image_there_is_no_more():
    ahead, begun = layer()
    for offset in range(SIZE - 4 * MIB, SIZE, 128 * KIB):
        ahead.used(offset, 128 * KIB)
    assert max(start + length for start, length in begun) == SIZE


@given(
    st.lists(
        st.tuples(st.integers(0, SIZE - 1), st.integers(1, 1 * MIB), st.integers(1, 12)),
        max_size=30,
    )
)
def test_never_more_is_fetched_in_vain_than_was_read(runs: list[tuple[int, int, int]]):
    ahead, begun = layer()
    read = 0
    for start, length, times in runs:
        for number in range(times):
            offset = start + number * length
            if offset + length > SIZE:
                break
            read += length
            ahead.used(offset, length)
            assert sum(size for _, size in begun) <= 2 * read
            assert all(0 <= at < at + size <= SIZE for at, size in begun)


def test_a_large_chunk_is_not_fetched_because_of_a_small_read_before_it():
    begun: list[tuple[int, int]] = []
    starts = range(0, SIZE, 4 * MIB)
    table = ChunkTable(SIZE, starts, [*starts, SIZE], None)
    ahead = LayerAhead(table, SIZE, Line(), lambda offset, length: begun.append((offset, length)))
    for offset in range(4 * MIB - 2 * LEAST_RUN_BYTES, 7 * MIB, LEAST_RUN_BYTES):
        ahead.used(offset, LEAST_RUN_BYTES)
    assert begun == []
    for offset in range(7 * MIB, 12 * MIB, LEAST_RUN_BYTES):
        ahead.used(offset, LEAST_RUN_BYTES)
    assert begun[0] == (8 * MIB, 4 * MIB)

"""How much of a blob comes along with its chunk table."""

from hypothesis import given
from hypothesis import strategies as st

from lazyfs.layer.opening import (
    ALL_LAYERS_BYTES,
    LARGEST_BYTES,
    SMALLEST_BYTES,
    beginning,
)
from lazyfs.model import ByteRange
from lazyfs.seekable.pointers import Pointers, TablePointer


def pointers(chunks: int, frame_bytes: int) -> Pointers:
    end = chunks * frame_bytes
    return Pointers(TablePointer(ByteRange(end, 31 + 72 * chunks), True, None), None, end, True)


def test_about_one_chunk():
    assert 40_000 <= beginning(pointers(100, 40_000), 1) <= 41_000


def test_no_more_than_the_chunks_take():
    assert beginning(pointers(1, 500), 1) == 500
    assert beginning(pointers(0, 500), 1) == 0


def test_nothing_of_a_blob_without_a_table():
    assert beginning(Pointers(None, None, 1 << 30, False), 1) == 0


@given(st.integers(0, 10_000), st.integers(1, 5 << 20), st.integers(1, 500))
def test_bounded_for_one_layer_and_for_all(chunks: int, frame_bytes: int, layers: int):
    along = beginning(pointers(chunks, frame_bytes), layers)
    assert 0 <= along <= LARGEST_BYTES
    assert layers * along <= max(ALL_LAYERS_BYTES, layers * SMALLEST_BYTES)

"""What was read is noted once, in order."""

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.profile import recording as module
from lazyfs.profile.document import BLOCK_BYTES, BlockRun
from lazyfs.profile.recording import Recording


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 5 << 20), st.integers(1, 3 << 20)), max_size=20
    )
)
def test_blocks_come_in_the_order_of_their_first_use(reads: list[tuple[int, int, int]]) -> None:
    recording = Recording()
    layers = [recording.layer() for _ in range(3)]
    expected: dict[tuple[int, int], None] = {}
    for layer, offset, length in reads:
        layers[layer].note(offset, length)
        for block in range(offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES + 1):
            expected.setdefault((layer, block))
    found = chain.from_iterable(
        [(run.layer, block) for block in range(run.first, run.end)] for run in recording.runs()
    )
    assert list(found) == list(expected)
    assert recording.complete


def test_neighbours_that_are_read_in_turn_are_one_run() -> None:
    recording = Recording()
    layer = recording.layer()
    for offset in range(0, 4 << 20, 128 << 10):
        layer.note(offset, 128 << 10)
    assert list(recording.runs()) == [BlockRun(0, 0, 1024)]


def test_beyond_its_limits_it_says_that_it_is_incomplete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BLOCK_RUNS", 2)
    recording = Recording()
    layer = recording.layer()
    for block in (0, 2, 3, 5):
        layer.note(block * BLOCK_BYTES, 1)
    assert list(recording.runs()) == [BlockRun(0, 0, 1), BlockRun(0, 2, 2)]
    assert not recording.complete


def test_bits_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_GROUPS", 1)
    recording = Recording()
    one, other = recording.layer(), recording.layer()
    one.note(0, 10)
    assert recording.complete
    other.note(0, 10)
    one.note(BLOCK_BYTES, 10)
    assert list(recording.runs()) == [BlockRun(0, 0, 2)]
    assert not recording.complete

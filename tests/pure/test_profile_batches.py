"""What a profile makes a mount fetch: whole chunks, once each, in order, within limits."""

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.model import ByteRange
from lazyfs.profile import batches as module
from lazyfs.profile.batches import Batch, plan_batches
from lazyfs.profile.document import BLOCK_BYTES, BlockRun
from lazyfs.seekable.chunktable import ChunkTable

CHUNK = 4 * BLOCK_BYTES


def table(chunks: int, frame_bytes: int = 1000) -> tuple[ChunkTable, int]:
    """A layer whose last chunk has something behind the image, and its image's size."""
    frames = [512 + number * frame_bytes for number in range(chunks + 1)]
    starts = range(0, chunks * CHUNK, CHUNK)
    return ChunkTable(chunks * CHUNK, starts, frames, None), chunks * CHUNK - 5000


def chunks_of(batches: list[Batch]) -> list[tuple[int, int]]:
    return [
        (layer, offset // CHUNK)
        for batch in batches
        for layer, ranges in batch.ranges.items()
        for where in ranges
        for offset in range(where.offset, where.end, CHUNK)
    ]


@given(
    st.lists(st.builds(BlockRun, st.integers(0, 3), st.integers(0, 200), st.integers(1, 60))),
)
def test_every_named_chunk_comes_once_and_nothing_else(runs: list[BlockRun]) -> None:
    layers = {0: table(40), 2: table(1), 3: table(17)}
    batches, dropped = plan_batches(runs, layers)
    blocks = {(run.layer, block) for run in runs for block in range(run.first, run.end)}
    inside = {
        (layer, block)
        for layer, block in blocks
        if layer in layers and block * BLOCK_BYTES < layers[layer][1]
    }
    found = chunks_of(batches)
    assert len(found) == len(set(found))
    assert set(found) == {(layer, block * BLOCK_BYTES // CHUNK) for layer, block in inside}
    assert dropped.blocks == sum(
        (run.layer, block) not in inside for run in runs for block in range(run.first, run.end)
    )
    assert sum(batch.blob_bytes for batch in batches) == 1000 * len(found)
    for batch in batches:
        assert sum(map(len, batch.ranges.values())) <= module.MAX_SPANS
        for layer, ranges in batch.ranges.items():
            assert all(where.end <= layers[layer][1] for where in ranges)


def test_what_is_used_first_comes_first_and_neighbours_together() -> None:
    runs = [BlockRun(0, 36, 4), BlockRun(0, 32, 1), BlockRun(0, 0, 1), BlockRun(0, 40, 1)]
    (batch,), _ = plan_batches(runs, {0: table(20)})
    assert batch.ranges == {0: [ByteRange(8 * CHUNK, 3 * CHUNK), ByteRange(0, CHUNK)]}


def test_portions_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_BATCH_BYTES", 2000)
    monkeypatch.setattr(module, "BATCH_BYTES", 6000)
    batches, _ = plan_batches([BlockRun(0, 0, 80)], {0: table(20)})
    assert [batch.blob_bytes // 1000 for batch in batches] == [2, 4, 6, 6, 2]
    assert chunks_of(batches) == [(0, number) for number in range(20)]


def test_a_portion_has_few_places(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [BlockRun(0, 8 * number, 1) for number in range(20)]
    batches, _ = plan_batches(runs, {0: table(40)})
    assert [len(batch.ranges[0]) for batch in batches] == [6, 6, 6, 2]
    order = list(chain.from_iterable(sorted(chunks_of([batch])) for batch in batches))
    assert order == [(0, 2 * number) for number in range(20)]


def test_a_profile_may_fetch_only_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT_BYTES", 5500)
    batches, dropped = plan_batches([BlockRun(0, 0, 80)], {0: table(20)})
    assert sum(batch.blob_bytes for batch in batches) == 5000
    assert dropped.limited

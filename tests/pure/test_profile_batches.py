"""What a profile makes a mount fetch: whole chunks, once each, in order, within limits."""

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.model import ByteRange
from lazyfs.profile import batches as module
from lazyfs.profile.batches import Batch, Plan
from lazyfs.profile.document import BLOCK_BYTES, BlockRun
from lazyfs.seekable.chunktable import ChunkTable

CHUNK = 4 * BLOCK_BYTES


def table(chunks: int, frame_bytes: int = 1000) -> tuple[ChunkTable, int]:
    """A layer whose last chunk has something behind the image, and its image's size."""
    frames = [512 + number * frame_bytes for number in range(chunks + 1)]
    starts = range(0, chunks * CHUNK, CHUNK)
    return ChunkTable(chunks * CHUNK, starts, frames, None), chunks * CHUNK - 5000


def planned(
    runs: list[BlockRun], layers: dict[int, tuple[ChunkTable, int]], places: int = 1
) -> list[Batch]:
    return list(Plan(runs, layers).batches(lambda: places))


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
    st.sampled_from([1, 32]),
)
def test_every_named_chunk_comes_once_and_nothing_else(runs: list[BlockRun], places: int) -> None:
    layers = {0: table(40), 2: table(1), 3: table(17)}
    plan = Plan(runs, layers)
    batches, dropped = list(plan.batches(lambda: places)), plan.dropped
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
    assert sum(batch.blob_bytes for batch in batches) == plan.blob_bytes == 1000 * len(found)
    assert plan.chunks == {
        layer: {index for other, index in found if other == layer} for layer in layers
    }
    for batch in batches:
        assert sum(map(len, batch.ranges.values())) <= max(module.MAX_SPANS, places)
        for layer, ranges in batch.ranges.items():
            assert all(where.end <= layers[layer][1] for where in ranges)


def test_what_is_used_first_comes_first_and_neighbours_together() -> None:
    runs = [BlockRun(0, 36, 4), BlockRun(0, 32, 1), BlockRun(0, 0, 1), BlockRun(0, 40, 1)]
    (batch,) = planned(runs, {0: table(20)})
    assert batch.ranges == {0: [ByteRange(8 * CHUNK, 3 * CHUNK), ByteRange(0, CHUNK)]}


def test_portions_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_BATCH_BYTES", 2000)
    monkeypatch.setattr(module, "BATCH_BYTES", 6000)
    batches = planned([BlockRun(0, 0, 80)], {0: table(20)})
    assert [batch.blob_bytes // 1000 for batch in batches] == [2, 4, 6, 6, 2]
    assert chunks_of(batches) == [(0, number) for number in range(20)]


def test_a_portion_has_few_places(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [BlockRun(0, 8 * number, 1) for number in range(20)]
    batches = planned(runs, {0: table(40)})
    assert [len(batch.ranges[0]) for batch in batches] == [6, 6, 6, 2]
    order = list(chain.from_iterable(sorted(chunks_of([batch])) for batch in batches))
    assert order == [(0, 2 * number) for number in range(20)]


def test_a_profile_may_fetch_only_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT_BYTES", 5500)
    plan = Plan([BlockRun(0, 0, 80)], {0: table(20)})
    assert sum(batch.blob_bytes for batch in plan.batches(lambda: 1)) == plan.blob_bytes == 5000
    assert plan.dropped.limited


def test_where_places_cost_little_the_order_is_that_of_first_use() -> None:
    numbers = [9, 3, 10, 2, 8, 30, 31, 4]
    runs = [BlockRun(0, 4 * number, 1) for number in numbers]
    (batch,) = planned(runs, {0: table(40)}, places=32)
    assert chunks_of([batch]) == [(0, number) for number in numbers]
    assert len(batch.ranges[0]) == 7
    assert [len(batch.ranges[0]) for batch in planned(runs, {0: table(40)}, places=3)] == [6, 1]


def test_what_is_learned_meanwhile_counts_from_the_next_portion_on() -> None:
    runs = [BlockRun(0, 8 * number, 1) for number in range(40)]
    known = iter([32, 1, 1])
    batches = Plan(runs, {0: table(90)}).batches(lambda: next(known))
    assert [len(batch.ranges[0]) for batch in batches] == [32, 6, 2]

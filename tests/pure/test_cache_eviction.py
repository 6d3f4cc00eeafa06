from hypothesis import given
from hypothesis import strategies as st

from cache.eviction import (
    BLOCK_BYTES,
    EXACT_EVICTION_CHUNKS,
    StoredChunk,
    charged_bytes,
    evict,
    eviction_order,
    eviction_target_bytes,
)
from cache.recency import MAX_REMEMBERED, RecentUses

CHUNKS = st.lists(
    st.builds(
        StoredChunk,
        st.text("abc", min_size=1, max_size=6),
        st.integers(0, 64).map(lambda blocks: blocks * BLOCK_BYTES),
        st.integers(0, 20),
    ),
    unique_by=lambda chunk: chunk.name,
    max_size=40,
)


def test_chunks_are_charged_in_whole_blocks():
    assert [charged_bytes(size) for size in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]


@given(CHUNKS, st.integers(-10, 40 * 64 * BLOCK_BYTES), st.data())
def test_the_fewest_least_recently_used_go(chunks: list[StoredChunk], excess: int, data):
    in_use = set(data.draw(st.lists(st.sampled_from(chunks)))) if chunks else set()
    asked: list[StoredChunk] = []

    def remove(chunk: StoredChunk) -> bool:
        asked.append(chunk)
        return chunk not in in_use

    removed = evict(chunks, excess, remove)

    assert removed == [chunk for chunk in asked if chunk not in in_use]
    assert asked == eviction_order(chunks)[: len(asked)]
    freed = sum(chunk.charged_bytes for chunk in removed)
    if len(asked) < len(chunks):
        assert freed >= excess
    if removed and asked[-1] in removed:
        assert freed - removed[-1].charged_bytes < excess
    if excess <= 0:
        assert not asked


@given(CHUNKS)
def test_the_order_is_by_last_use_whatever_order_the_disk_gives(chunks: list[StoredChunk]):
    order = eviction_order(reversed(chunks))
    assert order == eviction_order(chunks)
    assert sorted(order) == sorted(chunks)
    uses = [chunk.last_use_ns for chunk in order]
    assert uses == sorted(uses)


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40), st.integers(0, 2 * EXACT_EVICTION_CHUNKS))
def test_the_target_leaves_room_for_what_comes(limit: int, incoming: int, count: int):
    target = eviction_target_bytes(limit, incoming, count)
    assert target >= 0
    if incoming <= limit:
        assert target + incoming <= limit
    if count <= EXACT_EVICTION_CHUNKS:
        assert target == max(0, limit - incoming)
    elif incoming == 0:
        assert 0.85 * limit - 1 <= target <= 0.95 * limit + 1


def test_recent_uses_forget_the_oldest_use_only():
    uses = RecentUses()
    for number in range(MAX_REMEMBERED):
        uses.note(str(number), number + 1)
    uses.note("0", 10**9)
    uses.note("new", 10**9 + 1)
    assert uses.last_use_ns("0") == 10**9
    assert uses.last_use_ns("1") == 0
    assert uses.last_use_ns("2") == 3
    assert uses.last_use_ns("new") == 10**9 + 1

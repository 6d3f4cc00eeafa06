"""The memory of MACs: what it knows, what it forgets, and that only its key makes them."""

from hypothesis import given
from hypothesis import strategies as st

from lazyfs.layer.macs import GRANULE_BYTES, MAC_BYTES, REGION_GRANULES, MacMemory

REGION_BYTES = REGION_GRANULES * MAC_BYTES


def numbered(first: int, count: int) -> bytes:
    """MACs that tell which granule they are of."""
    return b"".join(
        number.to_bytes(MAC_BYTES, "big") for number in range(first + 1, first + count + 1)
    )


granules = st.tuples(st.integers(0, 3 * REGION_GRANULES), st.integers(1, 2 * REGION_GRANULES))


@given(st.lists(granules, max_size=5), granules)
def test_only_what_was_put_in_is_known(put: list[tuple[int, int]], asked: tuple[int, int]):
    memory = MacMemory()
    for first, count in put:
        memory.put(1, first, numbered(first, count))
    known = {number for first, count in put for number in range(first, first + count)}
    first, count = asked
    wanted = numbered(first, count) if known.issuperset(range(first, first + count)) else None
    assert memory.get(1, first, count) == wanted
    assert memory.get(2, first, count) is None


def test_the_region_not_used_for_longest_is_forgotten():
    memory = MacMemory(2 * REGION_BYTES)
    for region in range(2):
        memory.put(0, region * REGION_GRANULES, numbered(0, 1))
    assert memory.get(0, 0, 1) is not None
    memory.put(0, 2 * REGION_GRANULES, numbered(0, 1))
    assert memory.get(0, REGION_GRANULES, 1) is None
    assert memory.get(0, 0, 1) == memory.get(0, 2 * REGION_GRANULES, 1) == numbered(0, 1)


def test_no_more_than_the_limit_is_kept_whatever_the_size_of_a_read():
    memory = MacMemory(REGION_BYTES)
    memory.put(0, 0, numbered(0, 3 * REGION_GRANULES))
    assert memory.get(0, 0, 3 * REGION_GRANULES) is None
    last = 2 * REGION_GRANULES
    assert memory.get(0, last, REGION_GRANULES) == numbered(last, REGION_GRANULES)


def test_macs_differ_by_content_place_and_key():
    memory = MacMemory()
    data = bytes(GRANULE_BYTES) + b"x" * GRANULE_BYTES + b"short"
    macs = memory.macs_of(data, GRANULE_BYTES)
    assert len(macs) == 3 * MAC_BYTES
    assert len({macs[at : at + MAC_BYTES] for at in range(0, len(macs), MAC_BYTES)}) == 3
    assert memory.macs_of(data, GRANULE_BYTES) == macs
    assert MacMemory().macs_of(data, GRANULE_BYTES) != macs
    for at in (0, GRANULE_BYTES, len(data) - 1):
        other = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        assert memory.macs_of(other, GRANULE_BYTES) != macs

"""The lazy tree: asks for what it needs, keeps what was proven, names what was not."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.errors import DataBlockMismatchError, HashBlockMismatchError, ImageFormatError
from lazyfs.model import ByteRange
from lazyfs.verity.build import BuiltTree, HashTreeBuilder
from lazyfs.verity.leaves import LeafMemory
from lazyfs.verity.trusted import TrustedHashTree

SIZE = 512
PER_BLOCK = 8


def build(count: int, *, tail: int = SIZE, **options) -> tuple[bytes, BuiltTree]:
    data = random.Random(count).randbytes((count - 1) * SIZE + tail)
    builder = HashTreeBuilder(block_size_bytes=SIZE, **options)
    builder.add(data)
    return data, builder.finish()


def feed(tree: TrustedHashTree, payload: bytes, first: int, count: int) -> int:
    """Fetch what is missing; the number of bytes that it took."""
    fetched = 0
    while needed := tree.missing(first, count):
        for where in needed:
            tree.add(where, payload[where.offset : where.end])
            fetched += where.length
    return fetched


@pytest.mark.parametrize("options", [{}, {"algorithm": "sha256", "salt": b"pepper"}])
@pytest.mark.parametrize("count", [1, 2, 8, 9, 64, 65, 513])
def test_every_block_verifies_and_every_changed_one_does_not(count, options):
    data, built = build(count, **options)
    tree = TrustedHashTree(built.params, built.root_digest)
    for block in range(count):
        feed(tree, built.payload, block, 1)
        content = data[block * SIZE : (block + 1) * SIZE]
        tree.verify(block, content)
        changed = bytearray(content)
        changed[block % SIZE] ^= 0x10
        with pytest.raises(DataBlockMismatchError, match=f"data block {block} "):
            tree.verify(block, changed)
    tree.verify(0, data)


def test_first_differing_block_of_many_is_named():
    data, built = build(100)
    tree = TrustedHashTree(built.params, built.root_digest)
    feed(tree, built.payload, 0, 100)
    changed = bytearray(data)
    changed[37 * SIZE] ^= 1
    changed[90 * SIZE] ^= 1
    for first in (0, 5, 37):
        with pytest.raises(DataBlockMismatchError, match=r"data block 37 \(byte 18944\).*sha512"):
            tree.verify(first, changed[first * SIZE :])


def test_only_the_path_is_asked_for_top_first():
    _, built = build(513)  # levels of 65, 9, 2 and 1 hash blocks
    tree = TrustedHashTree(built.params, built.root_digest)
    top, middle, low, leaf = (block * SIZE for block in (1, 2, 4, 13))
    assert tree.missing(0, 1) == [
        ByteRange(top, 2 * SIZE),
        ByteRange(low, SIZE),
        ByteRange(leaf, SIZE),
    ]
    assert middle == top + SIZE
    feed(tree, built.payload, 0, 1)
    assert tree.missing(0, PER_BLOCK) == []
    assert tree.missing(PER_BLOCK, 1) == [ByteRange(leaf + SIZE, SIZE)]
    assert tree.missing(7, 10) == [ByteRange(leaf + SIZE, 2 * SIZE)]
    assert tree.missing(3, 0) == []


@pytest.mark.parametrize("count", [2, 65, 513])
def test_a_flipped_bit_in_any_hash_block_is_named_and_not_kept(count):
    _, built = build(count)
    for position in range(SIZE, len(built.payload), SIZE):
        broken = bytearray(built.payload)
        broken[position + 3] ^= 0x80
        tree = TrustedHashTree(built.params, built.root_digest)
        with pytest.raises(HashBlockMismatchError, match=r"hash block \d+ of level \d"):
            tree.add(ByteRange(0, len(broken)), bytes(broken))
        assert tree.missing(0, count)
        feed(tree, built.payload, 0, count)
        assert tree.missing(0, count) == []


def test_a_wrong_root_proves_nothing():
    data, built = build(9)
    tree = TrustedHashTree(built.params, bytes(64))
    with pytest.raises(HashBlockMismatchError, match="hash block 0 of level 1"):
        feed(tree, built.payload, 0, 1)
    single = TrustedHashTree(build(1)[1].params, bytes(64))
    with pytest.raises(DataBlockMismatchError):
        single.verify(0, data[:SIZE])
    with pytest.raises(ImageFormatError, match="root digest of 32 bytes"):
        TrustedHashTree(built.params, bytes(32))


def test_unproven_order_keeps_nothing_and_asks_again():
    _, built = build(65)
    tree = TrustedHashTree(built.params, built.root_digest)
    needed = tree.missing(0, 65)
    assert needed == [ByteRange(SIZE, len(built.payload) - SIZE)]
    leaves = ByteRange(4 * SIZE, 9 * SIZE)
    tree.add(leaves, built.payload[leaves.offset : leaves.end])
    assert tree.missing(0, 65) == needed


def test_leaves_are_dropped_beyond_the_limit_and_upper_levels_are_not():
    data, built = build(513)
    tree = TrustedHashTree(built.params, built.root_digest, LeafMemory(4 * SIZE))
    feed(tree, built.payload, 0, 32)
    feed(tree, built.payload, 0, 8)
    feed(tree, built.payload, 32, 8)
    assert tree.missing(0, 8) == [], "used last, kept"
    assert len(tree.missing(8, 8)) == 1, "used least recently, dropped"
    assert feed(tree, built.payload, 8, 8) == SIZE, "its parents were kept"
    assert feed(tree, built.payload, 0, 513) > 0, "a request may pass the limit"
    tree.verify(0, data)


def test_short_last_block_counts_as_padded():
    data, built = build(9, tail=100)
    tree = TrustedHashTree(built.params, built.root_digest)
    feed(tree, built.payload, 0, 9)
    tree.verify(0, data)
    tree.verify(8, data[8 * SIZE :])
    tree.verify(8, data[8 * SIZE :].ljust(SIZE, b"\0"))
    with pytest.raises(AssertionError, match="not whole data blocks"):
        tree.verify(7, data[7 * SIZE : 7 * SIZE + 100])


def test_misuse_is_a_bug_not_a_pass():
    data, built = build(65)
    tree = TrustedHashTree(built.params, built.root_digest)
    with pytest.raises(AssertionError, match="before leaf block 0 was added"):
        tree.verify(0, data[:SIZE])
    for first, count in ((-1, 1), (65, 1), (0, 66)):
        with pytest.raises(AssertionError, match="there are 65"):
            tree.missing(first, count)
    for where, given_bytes in ((ByteRange(1, SIZE), SIZE), (ByteRange(SIZE, SIZE), SIZE - 1)):
        with pytest.raises(AssertionError, match="blocks have 512"):
            tree.add(where, bytes(given_bytes))


@settings(max_examples=60)
@given(
    count=st.integers(1, 600),
    tail=st.integers(1, SIZE),
    limit=st.integers(1, 12),
    requests=st.lists(st.tuples(st.integers(0, 599), st.integers(1, 80)), max_size=12),
)
def test_any_order_of_reads_verifies(count, tail, limit, requests):
    data, built = build(count, tail=tail)
    tree = TrustedHashTree(built.params, built.root_digest, LeafMemory(limit * SIZE))
    for start, length in requests:
        first = start % count
        blocks = min(length, count - first)
        feed(tree, built.payload, first, blocks)
        tree.verify(first, data[first * SIZE : (first + blocks) * SIZE])

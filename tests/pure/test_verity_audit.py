"""``audit_tree``: what is broken in a whole tree, and what that leaves unproven."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.steps import Need, run
from lazyfs.verity.audit import BrokenBlock, TreeAudit, audit_tree
from lazyfs.verity.build import BuiltTree, HashTreeBuilder
from lazyfs.verity.geometry import geometry
from tests.support.layer_layouts import noise

BLOCK = 512
FAN_OUT = BLOCK // 64


def build(blocks: int, algorithm: str = "sha512") -> BuiltTree:
    builder = HashTreeBuilder(algorithm=algorithm, block_size_bytes=BLOCK, salt=b"salt")
    builder.add(noise(blocks * BLOCK))
    return builder.finish()


def audit(tree: BuiltTree, payload: bytes) -> tuple[TreeAudit, list[BrokenBlock]]:
    broken: list[BrokenBlock] = []

    def read(need: Need) -> bytes:
        assert need.device == 0
        assert need.offset + need.length <= len(payload)
        return payload[need.offset : need.offset + need.length]

    return run(audit_tree(tree.params, tree.root_digest, broken.append), read), broken


@pytest.mark.parametrize("algorithm", ["sha512", "sha256"])
@pytest.mark.parametrize("blocks", [1, 2, 8, 9, 64, 65, 513, 4097])
def test_sound(blocks: int, algorithm: str):
    tree = build(blocks, algorithm)
    found, broken = audit(tree, tree.payload)
    assert broken == []
    assert found.unproven == []
    assert found.blocks == sum(level.blocks for level in geometry(tree.params).levels)


@settings(max_examples=200)
@given(st.data())
def test_one_broken_block(data: st.DataObject):
    """It is named, nothing below it is called broken, and all below it is unproven."""
    blocks = data.draw(st.integers(2, 700))
    tree = build(blocks)
    shape = geometry(tree.params)
    level = data.draw(st.integers(0, len(shape.levels) - 1))
    number = data.draw(st.integers(0, shape.levels[level].blocks - 1))
    offset = (shape.levels[level].first_block + number) * BLOCK
    payload = bytearray(tree.payload)
    payload[offset + data.draw(st.integers(0, BLOCK - 1))] ^= data.draw(st.integers(1, 255))
    found, broken = audit(tree, bytes(payload))
    (one,) = broken
    assert (one.level, one.number, one.where) == (level, number, (offset, BLOCK))
    assert f"hash block {number} of level {level}" in str(one.error("sha512"))
    below = FAN_OUT ** (level + 1)
    lost = range(number * below, min((number + 1) * below, blocks))
    assert found.unproven == [lost]
    for block in {0, lost.start - 1, lost.start, lost.stop - 1, lost.stop, blocks - 1}:
        if 0 <= block < blocks:
            assert found.is_proven(block) is (block not in lost)


@settings(max_examples=100)
@given(st.sets(st.integers(0, 80), max_size=20))
def test_several_broken_leaves(numbers: set[int]):
    tree = build(81 * FAN_OUT)
    shape = geometry(tree.params)
    payload = bytearray(tree.payload)
    for number in numbers:
        payload[(shape.levels[0].first_block + number) * BLOCK] ^= 1
    found, broken = audit(tree, bytes(payload))
    assert [one.number for one in broken] == sorted(numbers)
    lost = {block for blocks in found.unproven for block in blocks}
    for blocks in (range(648), range(9, 10), range(7, 33), range(300, 301), range(640, 648)):
        assert found.unproven_among(blocks) == len(lost.intersection(blocks))
    assert lost == {number * FAN_OUT + slot for number in numbers for slot in range(FAN_OUT)}


def test_another_root():
    tree, other = build(600), build(599)
    found, broken = audit(other._replace(params=tree.params), tree.payload)
    assert [(one.level, one.number) for one in broken] == [(3, 0)]
    assert found.unproven == [range(600)]
    assert found.blocks == 1

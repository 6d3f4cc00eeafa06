"""In which pieces a hash tree is fetched: no more of it than what is read needs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.layer.hashes import PIECE_BYTES, Cuts
from lazyfs.layer.line import WAITS
from lazyfs.model import ByteRange
from lazyfs.verity.geometry import geometry
from lazyfs.verity.params import VerityParams
from tests.support import layer_builder as build
from tests.support.layer_builder import Layer
from tests.support.layer_rig import Opened, RottingStore, noise, rigged

CHUNK = 512 << 10
SIZE = 48 * CHUNK


def tree_of(data_blocks: int, hash_block: int = 4096, algorithm: str = "sha512") -> VerityParams:
    return VerityParams(algorithm, 4096, hash_block, data_blocks, b"")


@given(
    data_blocks=st.integers(1, 1 << 20),
    hash_block=st.sampled_from([512, 1024, 4096, 16384]),
    algorithm=st.sampled_from(["sha256", "sha512"]),
)
def test_pieces_lie_side_by_side_and_make_the_whole(data_blocks, hash_block, algorithm):
    params = tree_of(data_blocks, hash_block, algorithm)
    cuts, tree = Cuts.of(params), geometry(params)
    for number in {*range(min(cuts.pieces, 20)), cuts.pieces - 1}:
        where = cuts.where(number)
        assert where.length > 0
        assert where.offset % hash_block == 0
        assert cuts.number(where.offset) == cuts.number(where.end - 1) == number
        assert where.offset == (cuts.where(number - 1).end if number else 0)
    assert cuts.where(cuts.pieces - 1).end == tree.payload_size_bytes
    if tree.levels:
        leaf = tree.levels[0].first_block * hash_block
        assert cuts.where(cuts.number(leaf)).offset == leaf or cuts.number(leaf) == 0


@given(data_blocks=st.integers(129, 1 << 20), data=st.data())
def test_an_aligned_chunk_is_proven_by_one_piece(data_blocks, data):
    params = tree_of(data_blocks)
    cuts, tree = Cuts.of(params), geometry(params)
    leaves = tree.levels[0]
    chunk = data.draw(st.integers(0, leaves.blocks // 2 - 1))
    first = (leaves.first_block + 2 * chunk) * 4096
    assert cuts.number(first) == cuts.number(first + PIECE_BYTES - 1)


@given(
    data_blocks=st.integers(2, 1 << 20),
    algorithm=st.sampled_from(["sha256", "sha512"]),
    data=st.data(),
)
def test_a_piece_proves_the_blocks_whose_digests_it_holds(data_blocks, algorithm, data):
    params = tree_of(data_blocks, algorithm=algorithm)
    cuts, tree = Cuts.of(params), geometry(params)
    number = data.draw(st.integers(-1, cuts.pieces))
    first, count = cuts.proven_by(number)
    held = [
        block
        for block in {first - 1, first, first + count - 1, first + count}
        if 0 <= block < data_blocks
        if cuts.number(tree.digests(0, block, 1, params.digest_size_bytes).offset) == number
    ]
    assert sorted(held) == sorted({first, first + count - 1} if count > 0 else [])


@pytest.fixture(scope="module")
def layer() -> Layer:
    return build.seekable(noise(SIZE), CHUNK)


async def read_one(opened: Opened, store: RottingStore) -> int:
    """Pieces of the tree that a read of a chunk brings."""
    await opened.expect(40 * CHUNK, CHUNK)
    return len(store.keys("tree-"))


@pytest.mark.parametrize(
    ("mbit", "foreseen", "pieces"),
    [(100, False, 8), (100, True, 1), (30, False, 3), (10, False, 1)],
)
async def test_a_reader_gets_neighbours_unless_he_is_foreseen_or_the_line_is_thin(
    layer: Layer, mbit: int, foreseen: bool, pieces: int
):
    store = RottingStore()
    async with rigged(store) as rig:
        opened = await rig.open(layer)
        ahead = opened.reader.ahead
        assert ahead is not None
        ahead.coming = {1} if foreseen else ()
        line = rig.engine.turns.line
        line.asked(WAITS)
        for _ in range(WAITS):
            line.began(0.0, 0.005, 1)
            line.ended(0.0)
        line.bytes_per_s = mbit * 1e6 / 8
        assert await read_one(opened, store) == pieces


async def test_a_portion_of_a_profile_brings_hash_blocks_for_the_next_ones(layer: Layer):
    store = RottingStore()
    async with rigged(store) as rig:
        opened = await rig.open(layer)
        ahead = opened.reader.ahead
        assert ahead is not None
        ahead.coming = {20, 21, 22, 23, 40}
        asked = len(opened.blob.requests)
        await opened.reader.have([ByteRange(22 * CHUNK, CHUNK)])
        assert len(store.keys("tree-")) == 4  # of 20 to 23, side by side
        assert len(opened.blob.requests) - asked == 2  # these, and the chunk


@pytest.mark.parametrize(("mbit", "lengths"), [(100, [1, 5]), (10, [1, 1, 1])])
async def test_hash_blocks_in_short_gaps_come_along_where_that_is_sooner(
    layer: Layer, mbit: int, lengths: list[int]
):
    store = RottingStore()
    async with rigged(store) as rig:
        opened = await rig.open(layer)
        ahead = opened.reader.ahead
        assert ahead is not None
        rig.engine.turns.line.bytes_per_s = mbit * 1e6 / 8
        ahead.coming = {18, 22, 27}
        asked = len(opened.blob.requests)
        await opened.reader.have([ByteRange(number * CHUNK, CHUNK) for number in ahead.coming])
        of_tree = [where.length for where in opened.blob.requests[asked:] if where.length < CHUNK]
        assert sorted(of_tree) == [pieces * PIECE_BYTES for pieces in lengths]
        assert len(store.keys("tree-")) == 3  # what came along for nothing is not kept

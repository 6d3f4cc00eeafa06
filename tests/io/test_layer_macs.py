"""Blocks are proven by the tree once in a daemon's life, and known by their MACs from then on."""

import pytest
import trio

from lazyfs.errors import SourceUnavailableError
from lazyfs.layer.macs import GRANULE_BYTES, MacMemory
from lazyfs.layer.seekable import AT_ONCE_BYTES, VerityLayer
from lazyfs.verity.leaves import LeafMemory
from tests.support import layer_builder as build
from tests.support.layer_rig import Opened, RottingStore, noise, rigged

BLOCK = 4096
IMAGE = noise(20 * GRANULE_BYTES + 100)


def layer() -> build.Layer:
    return build.seekable(IMAGE)


def proofs(opened: Opened, monkeypatch) -> list[tuple[int, int]]:
    """First and number of the blocks that are held against the tree from now on."""
    assert isinstance(opened.reader, VerityLayer)
    tree = opened.reader._hashes.tree
    asked: list[tuple[int, int]] = []
    digests = tree.digests

    def noted(first: int, count: int) -> bytes:
        asked.append((first, count))
        return digests(first, count)

    monkeypatch.setattr(tree, "digests", noted)
    return asked


def rot(store: RottingStore, opened: Opened, at: int) -> None:
    """Change a byte of the image in the store."""
    chunks = opened.opened.chunks
    assert chunks is not None
    ((piece, offset, _),) = chunks.over(at, 1)
    store.rot(piece.key, offset)


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, GRANULE_BYTES),
        (GRANULE_BYTES, AT_ONCE_BYTES),
        (0, len(IMAGE)),
        (len(IMAGE) - 100, 100),  # a short granule at the end
    ],
)
async def test_the_tree_is_asked_once(offset: int, length: int, monkeypatch):
    async with rigged() as rig:
        opened = await rig.open(layer())
        asked = proofs(opened, monkeypatch)
        await opened.expect(offset, length)
        assert asked
        asked.clear()
        await opened.expect(offset, length)
        assert opened.reader.read_once_nowait(offset, length) == IMAGE[offset : offset + length]
        assert asked == []


async def test_what_is_no_whole_granule_is_held_against_the_tree_each_time(monkeypatch):
    async with rigged() as rig:
        opened = await rig.open(layer())
        offset, length = 3 * BLOCK, 2 * BLOCK + AT_ONCE_BYTES
        await opened.expect(offset, length)
        asked = proofs(opened, monkeypatch)
        await opened.expect(offset, length)
        assert set(asked) == {(3, 1), (4 + AT_ONCE_BYTES // BLOCK, 1)}


@pytest.mark.parametrize("at", [3 * BLOCK, GRANULE_BYTES, GRANULE_BYTES + AT_ONCE_BYTES + 1])
async def test_rot_is_seen_in_granules_and_beside_them(at: int):
    store = RottingStore()
    async with rigged(store) as rig:
        opened = await rig.open(layer())
        where = 3 * BLOCK, 2 * BLOCK + AT_ONCE_BYTES
        await opened.expect(*where)
        rot(store, opened, at)
        assert opened.reader.read_once_nowait(*where) is None
        await opened.expect(*where)
        assert opened.counters.verification_failures == 1


async def test_a_mac_needs_nothing_of_the_tree():
    store = RottingStore()
    async with rigged(store) as rig:
        opened = await rig.open(layer())
        await opened.expect_all()
        assert isinstance(opened.reader, VerityLayer)
        opened.reader._hashes.tree._leaves = LeafMemory()
        opened.blob.down = True
        for key in store.keys("tree-"):
            await store.discard(key)
        await opened.expect_all()


@pytest.mark.parametrize("length", [GRANULE_BYTES, len(IMAGE)])
async def test_rot_behind_the_first_read_is_seen_and_mended(length: int, monkeypatch):
    store = RottingStore()
    async with rigged(store) as rig:
        opened = await rig.open(layer())
        await opened.expect(0, length)
        asked = proofs(opened, monkeypatch)
        rot(store, opened, 5000)
        assert opened.reader.read_once_nowait(0, length) is None
        await opened.expect(0, length)
        assert asked  # who is right, the tree says
        assert opened.counters.verification_failures == 1
        asked.clear()
        await opened.expect(0, length)
        assert asked == []
        assert opened.counters.verification_failures == 1


async def test_rot_before_the_first_read_is_seen_by_the_tree():
    store = RottingStore()
    async with rigged(store) as rig:
        await (await rig.open(layer())).expect_all()
    async with rigged(store) as rig:  # another daemon
        opened = await rig.open(layer())
        rot(store, opened, 5000)
        assert opened.reader.read_once_nowait(0, GRANULE_BYTES) is None
        await opened.expect(0, GRANULE_BYTES)
        assert opened.counters.verification_failures == 1


async def test_rot_that_cannot_be_mended_is_an_error_though_the_mac_is_known():
    store = RottingStore()
    async with rigged(store) as rig:
        opened = await rig.open(layer())
        await opened.expect_all()
        rot(store, opened, 5000)
        opened.blob.down = True
        with pytest.raises(SourceUnavailableError):
            await opened.reader.read_once(0, len(IMAGE))
        opened.blob.down = False
        await opened.expect_all()


async def test_a_proven_block_does_not_vouch_for_its_neighbours(monkeypatch):
    store = RottingStore()
    async with rigged(store) as rig:
        opened = await rig.open(layer())
        for first in range(0, GRANULE_BYTES - BLOCK, BLOCK):  # all but the last of a granule
            assert await opened.reader.read_once(first, BLOCK) == IMAGE[first : first + BLOCK]
        rot(store, opened, GRANULE_BYTES - 10)
        asked = proofs(opened, monkeypatch)
        await opened.expect(0, GRANULE_BYTES)
        assert asked
        assert opened.counters.verification_failures == 1


async def test_what_is_forgotten_is_proven_by_the_tree_again(monkeypatch):
    store = RottingStore()
    image = noise(3 << 20)
    async with rigged(store) as rig:
        rig.engine.macs = MacMemory(0)  # one region, that of 1 MiB
        opened = await rig.open(build.seekable(image))
        await opened.expect(0, GRANULE_BYTES)
        await opened.expect(2 << 20, GRANULE_BYTES)
        asked = proofs(opened, monkeypatch)
        rot(store, opened, 100)
        await opened.expect(0, GRANULE_BYTES)
        assert asked
        assert opened.counters.verification_failures == 1


async def test_many_readers_at_once_while_the_store_rots():
    store = RottingStore()
    async with rigged(store) as rig:
        opened = await rig.open(layer())
        for at in (None, 0, 7 * GRANULE_BYTES, len(IMAGE) - 1):
            if at is not None:
                rot(store, opened, at)
            async with trio.open_nursery() as nursery:
                for offset in range(0, len(IMAGE) - 5000, 3 * BLOCK):
                    length = min(AT_ONCE_BYTES + offset, len(IMAGE) - offset)
                    nursery.start_soon(opened.expect, offset, length)


async def test_wrong_bytes_get_no_mac():
    store = RottingStore()
    async with rigged(store) as rig:
        opened = await rig.open(layer())
        await opened.expect(0, 1)  # fetched, and its first granule proven
        rot(store, opened, 2 * GRANULE_BYTES)
        opened.blob.down = True
        with pytest.raises(SourceUnavailableError):
            await opened.reader.read_once(2 * GRANULE_BYTES, GRANULE_BYTES)
        assert rig.engine.macs.get(0, 2, 1) is None

"""What layers remember counts for the mount: a hundred of them may not keep more than one."""

import gc
import itertools

from lazyfs.layer import chunks
from lazyfs.layer.macs import MacMemory
from lazyfs.layer.piece import Piece
from lazyfs.verity.leaves import LeafMemory
from tests.support import layer_builder as build
from tests.support.layer_rig import Opened, Rig, noise, rigged

BLOCK = 4096
CHUNK = 16 << 10
LAYERS = 6
IMAGE_BYTES = 40 * CHUNK
"""Of each layer: so many chunks, and three leaf blocks."""
LEAVES = 8
PIECES = 64
"""Both less than what three layers have, more than what one has."""


async def open_layers(rig: Rig) -> list[Opened]:
    images = [noise(IMAGE_BYTES, seed) for seed in range(LAYERS)]
    return [await rig.open(build.seekable(image, CHUNK)) for image in images]


def descriptions() -> int:
    """Chunks whose description is remembered anywhere."""
    gc.collect()
    return sum(isinstance(thing, Piece) for thing in gc.get_objects())


async def test_descriptions_of_chunks_have_one_limit_for_all_layers(monkeypatch):
    monkeypatch.setattr(chunks, "KNOWN_PIECES", PIECES)
    before = descriptions()
    async with rigged() as rig:
        layers = await open_layers(rig)
        for opened, chunk in itertools.product(layers, range(IMAGE_BYTES // CHUNK)):
            await opened.expect(chunk * CHUNK, 100)
        assert descriptions() - before == PIECES


async def test_a_layer_may_use_what_the_others_leave(monkeypatch):
    monkeypatch.setattr(chunks, "KNOWN_PIECES", PIECES)
    before = descriptions()
    async with rigged() as rig:
        first, *_ = await open_layers(rig)
        await first.expect_all()
        assert descriptions() - before == IMAGE_BYTES // CHUNK


async def test_leaves_of_hash_trees_have_one_limit_for_all_layers(monkeypatch):
    async with rigged() as rig:
        rig.engine.leaves = LeafMemory(LEAVES * BLOCK)
        for opened in (layers := await open_layers(rig)):
            await opened.expect_all()
        assert len(rig.engine.leaves.blocks) == LEAVES
        # What was dropped is had again, and the bytes are proven all the same.
        monkeypatch.setattr(MacMemory, "get", lambda *_: None)
        for opened in layers:
            await opened.expect_all()
        assert len(rig.engine.leaves.blocks) == LEAVES

"""Wrong bytes, on the way or in the cache: healed where they can be, never handed out."""

import logging
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.directory import DirectoryStore
from lazyfs.errors import (
    DataBlockMismatchError,
    DigestMismatchError,
    HashBlockMismatchError,
    LazyfsError,
    SourceUnavailableError,
    VerificationError,
)
from lazyfs.layer.hashes import PIECE_BYTES as HASH_PIECE_BYTES
from lazyfs.model import ByteRange, VerifyMode
from tests.support import layer_builder as build
from tests.support.blob_simulator import BlobSimulator
from tests.support.layer_builder import Layer, Verity
from tests.support.layer_rig import Opened, ReadOnlyStore, RottingStore, noise, rigged
from tests.support.settled import wait_all_settled

CHUNK = 65536
IMAGE = noise(6 * CHUNK + 1000)
DATA_BLOCKS = -(-len(IMAGE) // 4096)

VERITY = build.seekable(IMAGE, CHUNK)
FRAMES = build.seekable(IMAGE, CHUNK, None)
SPEC = build.spec_seekable(IMAGE, CHUNK)
UNPROVEN = build.spec_seekable(IMAGE, CHUNK, checksums=None)
SALTED = build.seekable(IMAGE, 70_001, Verity(1024, "sha256", b"pepper"))
LAYERS = {
    "tree": VERITY,
    "frames": FRAMES,
    "tree in the chunks": SPEC,
    "tree alone": UNPROVEN,
    "salted": SALTED,
}
"""In all of them a block of the image proves itself once more when it is read."""


def messages(caplog, level: int = logging.ERROR) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def parametrize(*names: str) -> pytest.MarkDecorator:
    names = names or tuple(LAYERS)
    return pytest.mark.parametrize("layer", [LAYERS[name] for name in names], ids=names)


@parametrize()
async def test_wrong_bytes_once_are_asked_for_again(layer: Layer, caplog):
    async with rigged() as rig:
        opened = await rig.open(layer)
        opened.blob.lie(layer.frames[2].offset + 100, times=1)
        await opened.expect_all()
        assert opened.counters.verification_failures == 1
        assert opened.counters.errors == 0
        (line,) = messages(caplog)
        for word in ("test/image layer 1", "chunk 2", "registry.test", "asking once more"):
            assert word in line
        opened.blob.forget()
        await opened.expect_all()
        assert opened.blob.requests == []


@parametrize("tree", "frames", "tree in the chunks")
async def test_chunks_that_are_always_wrong_fail_and_others_do_not(layer: Layer, caplog):
    async with rigged() as rig:
        opened = await rig.open(layer)
        opened.blob.lie(layer.frames[2].offset + 100)
        for _ in range(2):
            with pytest.raises(DigestMismatchError, match=r"wanted sha\d*:\w+, found sha\d*:\w+"):
                await opened.expect(2 * CHUNK + 5, 10)
        with pytest.raises(DigestMismatchError):
            await opened.expect_all()
        await opened.expect(0, 2 * CHUNK)
        await opened.expect(3 * CHUNK, 2 * CHUNK)
        assert opened.counters.errors == 3
        assert opened.counters.verification_failures == 6
        assert all("test/image layer 1: chunk 2 from registry.test" in m for m in messages(caplog))
        opened.blob.be_honest()
        await opened.expect_all()


async def test_an_unproven_chunk_that_is_always_wrong_fails_and_others_do_not(caplog):
    """Only the tree can tell; a frame that is no frame any more is told apart by nothing."""
    layer = UNPROVEN
    async with rigged() as rig:
        opened = await rig.open(layer)
        middle = layer.frames[2].offset + layer.frames[2].length // 2
        opened.blob.lie(middle)
        for _ in range(2):
            with pytest.raises((DataBlockMismatchError, LazyfsError)):
                await opened.expect(2 * CHUNK, CHUNK)
        await opened.expect(0, 2 * CHUNK)
        await opened.expect(3 * CHUNK, 2 * CHUNK)
        opened.blob.be_honest()
        await opened.expect_all()


@pytest.mark.parametrize("how", ["lie", "down"])
async def test_a_second_try_that_fails_says_why(how: str):
    async with rigged() as rig:
        opened = await rig.open(VERITY)
        blob = opened.blob
        blob.lie(100)
        if how == "down":
            blob.stall_at(requests_before=1)
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                wanted = DigestMismatchError if how == "lie" else SourceUnavailableError
                with pytest.raises(wanted):
                    await opened.expect(0, 10)

            nursery.start_soon(read)
            if how == "down":
                await blob.stalled.wait()
                blob.down = True
                for _, _, gate in blob._stalls:
                    gate.set()


@parametrize()
async def test_rotten_chunks_are_fetched_again(layer: Layer, caplog):
    store = RottingStore(None)
    async with rigged(store) as rig:
        opened = await rig.open(layer)
        await opened.expect_all()
        opened.blob.forget()
    async with rigged(store) as rig:  # without what the first one remembers
        opened = await rig.open(layer)
        store.rot(opened.key(2))
        await opened.expect_all()
        assert opened.blob.requests == [layer.frames[2]]
        assert opened.counters.verification_failures == 1
        assert opened.counters.errors == 0
        (line,) = messages(caplog)
        for word in ("test/image layer 1", "chunk 2", "registry.test", "rotten", "wanted sha"):
            assert word in line
        opened.blob.down = True
        await opened.expect_all()


@parametrize()
async def test_many_who_find_a_chunk_rotten_fetch_it_once(layer: Layer, caplog):
    store = RottingStore(None)
    async with rigged(store) as rig:
        await (await rig.open(layer)).expect_all()
    async with rigged(store) as rig:
        opened = await rig.open(layer)
        await opened.expect(0, 10)  # the tree is known
        store.rot(opened.key(2))
        go = opened.blob.stall_at()
        async with trio.open_nursery() as nursery:
            for number in range(20):
                start = opened.opened.chunks.table.chunk(2).offset  # type: ignore[union-attr]
                nursery.start_soon(opened.expect, start + 4990 - number, 100)
            await opened.blob.stalled.wait()
            await wait_all_settled()
            go()
        assert opened.blob.requests == [layer.frames[2]]
        assert opened.counters.verification_failures == len(messages(caplog)) == 1


@parametrize()
async def test_rotten_chunks_are_not_served_when_the_source_is_gone(layer: Layer):
    store = RottingStore(None)
    async with rigged(store) as rig:
        await (await rig.open(layer)).expect_all()
    async with rigged(store) as rig:
        opened = await rig.open(layer)
        opened.blob.down = True
        await opened.expect_all()
        store.rot(opened.key(2))
        opened = await rig.open(layer)
        opened.blob.down = True
        chunk = opened.opened.chunks.table.chunk(2)  # type: ignore[union-attr]
        for _ in range(2):
            with pytest.raises(SourceUnavailableError, match="refused"):
                await opened.reader.read(*chunk)
        await opened.expect(0, chunk.offset)
        opened.blob.down = False
        await opened.expect_all()


@parametrize("tree", "frames")
async def test_a_rotten_chunk_that_cannot_be_replaced_is_read_past_the_cache(layer: Layer, caplog):
    store = ReadOnlyStore()
    async with rigged(store) as rig:
        opened = await rig.open(layer)
        stored = layer.image[CHUNK : 2 * CHUNK]
        if layer is FRAMES:
            stored = layer.blob[layer.frames[1].offset : layer.frames[1].end]
        await store.let_in(opened.key(1), b"\1" + stored[1:])
        for _ in range(2):
            await opened.expect(CHUNK, 3)
        assert opened.counters.errors == 0
    assert any(
        "stays in the cache: read-only" in line for line in messages(caplog, logging.WARNING)
    )


@parametrize()
async def test_a_chunk_that_became_short_is_fetched_again(layer: Layer):
    store = RottingStore(None)
    async with rigged(store) as rig:
        opened = await rig.open(layer)
        await opened.expect_all()
        store._chunks[opened.key(1)] = store._chunks[opened.key(1)][:1000]
        opened = await rig.open(layer)
        await opened.expect_all()
        assert layer.frames[1] in opened.blob.forget()
        opened.blob.down = True
        await opened.expect_all()


# Hash blocks

BIG = build.seekable(noise(2 << 20), 1 << 18, Verity(512))
"""4096 blocks, whose tree takes several pieces of hash blocks."""


@pytest.mark.parametrize("times", [1, None])
async def test_wrong_hash_blocks_are_asked_for_again(times: int | None, caplog):
    async with rigged() as rig:
        opened = await rig.open(BIG)
        last = BIG.tree.end - 10
        assert BIG.tree.length > 3 * HASH_PIECE_BYTES
        opened.blob.lie(last, times)
        end = len(BIG.image)
        if times is None:
            for _ in range(2):
                with pytest.raises(HashBlockMismatchError, match=r"wanted sha512:.*found sha512:"):
                    await opened.expect(end - 10, 10)
            assert opened.counters.errors == 2
            await opened.expect(0, 1 << 20)
            opened.blob.be_honest()
        await opened.expect(end - 10, 10)
        assert opened.counters.verification_failures == (1 if times else 7)
        for line in messages(caplog):
            for word in ("test/image layer 1", "hash blocks", "registry.test", "wanted", "found"):
                assert word in line


@pytest.mark.parametrize(
    ("layer", "place"),
    [(BIG, BIG.tree.end - 10), (UNPROVEN, UNPROVEN.frames[6].end - 20), (VERITY, 100)],
    ids=["hash blocks", "unproven chunk", "chunk"],
)
async def test_another_host_is_asked_when_one_lies_again_and_again(
    layer: Layer, place: int, monkeypatch
):
    async with rigged() as rig:
        opened = await rig.open(layer)
        opened.blob.lie(place)

        def distrust(where: ByteRange) -> str:
            opened.blob.be_honest()
            return "mirror.test"

        monkeypatch.setattr(opened.blob, "distrust", distrust)
        await opened.expect_all()
        assert opened.counters.errors == 0


async def test_rotten_hash_blocks_are_fetched_again(caplog):
    store = RottingStore(None)
    async with rigged(store) as rig:
        await (await rig.open(BIG)).expect_all()
    pieces = store.keys("tree-")
    assert len(pieces) > 3
    for key in pieces:
        store.rot(key, -1 if key.form == "tree-0" else 0)
    async with rigged(store) as rig:
        opened = await rig.open(BIG)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(opened.expect_all)
        assert len(messages(caplog)) == opened.counters.verification_failures
        assert 0 < opened.counters.verification_failures <= len(pieces)
        assert len(opened.blob.requests) == opened.counters.verification_failures
        assert opened.counters.errors == 0
        opened = await rig.open(BIG)
        opened.blob.down = True
        await opened.expect_all()


async def test_the_top_of_the_tree_is_proven_on_opening():
    top = BIG.tree.offset + 512
    with pytest.raises(HashBlockMismatchError, match=r"^test/image layer 1: hash block 0 of level"):
        async with rigged() as rig:
            await rig.open(BIG.flipped(top))


@pytest.mark.parametrize(
    ("layer", "place"),
    [
        (BIG, BIG.tree.offset - 100),
        (BIG, BIG.tree.offset + 20),
        (BIG, BIG.tree.offset + 512),
        (SPEC, SPEC.frames[-1].offset + 5),
    ],
    ids=["table", "superblock", "root block", "chunk with the superblock"],
)
async def test_what_opening_needs_is_asked_for_again_when_it_is_wrong(layer: Layer, place: int):
    async with rigged() as rig:
        blob = BlobSimulator(layer.blob)
        lie = blob.lie(place, times=1)
        opened = await rig.open(layer, blob=blob)
        assert lie.told == 1
        await opened.expect_all()


# Whatever is changed, wherever it is


@given(
    st.sampled_from([*LAYERS.values(), BIG]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1),
    st.sampled_from([None, 1]),
    st.sampled_from([VerifyMode.ALWAYS, VerifyMode.FETCH]),
)
@settings(max_examples=150)
def test_a_lying_source_is_found_out(layer: Layer, lies, times, verify):
    async def main() -> None:
        async with rigged() as rig:
            opened = await rig.open(layer, verify)
            for place, _ in lies:
                opened.blob.lie(int(place * len(layer.blob)), times)
            for start in range(0, len(layer.image), CHUNK):
                length = min(CHUNK, len(layer.image) - start)
                try:
                    await opened.expect(start, length)
                except LazyfsError as error:
                    assert "\n" not in str(error)  # noqa: PT017
            opened.blob.be_honest()
            await opened.expect_all()

    trio.run(main)


@given(
    st.sampled_from([*LAYERS.values(), BIG]),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=20),
    st.booleans(),
)
@settings(max_examples=150)
def test_a_rotten_store_is_found_out(layer: Layer, places, gone):
    async def main() -> None:
        store = RottingStore(None)
        async with rigged(store) as rig:
            await (await rig.open(layer)).expect_all()
        keys = list(store._chunks)
        for place in places:
            key = keys[int(place * len(keys))]
            store.rot(key, int(place * 1e9) % len(store._chunks[key]))
        async with rigged(store) as rig:
            opened = await rig.open(layer)
            opened.blob.down = gone
            try:
                await opened.expect_all()
            except SourceUnavailableError:
                assert gone
            opened.blob.down = False
            await opened.expect_all()

    trio.run(main)


@pytest.mark.parametrize("name", ["tree", "frames", "tree in the chunks"])
async def test_flipped_bits_in_the_files_of_the_cache_heal(name: str, tmp_path: Path, caplog):
    layer = LAYERS[name]
    with await DirectoryStore.open(tmp_path / "cache", None) as store:
        async with rigged(store) as rig:
            await (await rig.open(layer)).expect_all()
        files = [path for path in (tmp_path / "cache/chunks").rglob("*") if path.is_file()]
        assert len(files) >= 7
        for path in files:
            changed = bytearray(path.read_bytes())
            changed[len(changed) // 2] ^= 4
            path.write_bytes(changed)
        async with rigged(store) as rig:
            opened = await rig.open(layer)
            await opened.expect_all()
            await opened.expect_all()
            assert opened.counters.verification_failures == len(messages(caplog)) > 0
        async with rigged(store) as rig:
            opened = await rig.open(layer)
            opened.blob.down = True
            await opened.expect_all()


async def test_without_verification_the_chunks_are_kept_apart():
    """What no one has proven must not be taken for proven by a later mount."""
    store = RottingStore(None)
    async with rigged(store) as rig:
        off = await rig.open(VERITY, VerifyMode.OFF)
        await off.expect_all()
        for chunk in range(len(VERITY.frames)):
            store.rot(off.key(chunk), 0)
        assert await off.reader.read(0, 2) != IMAGE[:2]
        assert off.counters.verification_failures == 0
        trusting = await rig.open(VERITY, VerifyMode.FETCH)
        await trusting.expect_all()
        assert len(trusting.blob.requests) == 1


async def test_what_fails_for_one_reader_fails_for_all_who_wait():
    async with rigged() as rig:
        opened: Opened = await rig.open(FRAMES)
        opened.blob.lie(100)
        failures: list[VerificationError] = []

        async def read() -> None:
            try:
                await opened.expect(0, 10)
            except VerificationError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(read)
        assert len(failures) == 20
        assert len(opened.blob.requests) == 2

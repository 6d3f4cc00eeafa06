"""Whatever its form and wherever its chunks are: a layer gives the bytes of its image."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.directory import DirectoryStore
from cache.memory import MemoryStore
from cache.store import ChunkStore
from lazyfs.errors import TruncatedRecordError
from lazyfs.layer.pages import PAGE_BYTES
from lazyfs.layer.seekable import FrameLayer, StoredLayer, VerityLayer
from lazyfs.layer.whole import WholeLayer
from lazyfs.model import VerifyMode
from lazyfs.plan import LayerMode
from tests.support import layer_builder as build
from tests.support.layer_builder import Layer, Verity
from tests.support.layer_rig import noise, rigged

TINY_LIMIT = 300_000
"""Bytes that the small stores hold: few chunks, or none of the largest ones."""

sizes = st.one_of(
    st.integers(1, 4097), st.integers(1, 400_000), st.sampled_from([512, 4096, 65536, 131072])
)
verities = st.builds(
    Verity,
    block=st.sampled_from([512, 1024, 4096, 16384, 65536]),
    algorithm=st.sampled_from(["sha512", "sha256"]),
    salt=st.sampled_from([b"", b"pepper", bytes(256)]),
)
chunk_sizes = st.one_of(st.sampled_from([4096, 65536, 1 << 20]), st.integers(3000, 100_000))


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    size = draw(sizes)
    image = draw(st.sampled_from([noise(size), bytes(size), (b"abc" * size)[:size]]))
    verity = draw(st.none() | verities)
    form = draw(st.sampled_from(["seekable", "spec", "raw", "spec raw", "zstd"]))
    chunk = draw(chunk_sizes)
    if form == "seekable":
        return build.seekable(image, chunk, verity, digests=draw(st.booleans()))
    if form == "spec":
        checksums = draw(st.sampled_from([None, "sha256", "sha512"]))
        digest = draw(st.booleans())
        return build.spec_seekable(image, chunk, verity, checksums=checksums, index_digest=digest)
    if form == "raw":
        return build.raw(image)
    if form == "zstd":
        return build.zstd(image, chunk)
    return build.spec_raw(image, verity or Verity())


@asynccontextmanager
async def a_store(kind: str) -> AsyncIterator[ChunkStore]:
    limit = TINY_LIMIT if "tiny" in kind else None
    if "memory" in kind:
        yield MemoryStore(limit)
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        await DirectoryStore.open(Path(folder) / "cache", limit) as store,
    ):
        yield store


stores = st.sampled_from(["memory", "tiny memory", "folder", "tiny folder"])


@st.composite
def reads(draw: st.DrawFn, size: int) -> tuple[int, int]:
    offset = draw(st.integers(0, size))
    return offset, draw(st.integers(0, size - offset) | st.integers(0, min(5000, size - offset)))


@given(st.data())
@settings(max_examples=150)
def test_every_read_gives_the_bytes_of_the_image(data: st.DataObject):
    layer = data.draw(layers())
    verify = data.draw(st.sampled_from(VerifyMode))
    kind = data.draw(stores)
    pages = data.draw(st.sampled_from([0, 3 * PAGE_BYTES, 1 << 20]))
    one = reads(len(layer.image))
    together = data.draw(st.lists(one, min_size=1, max_size=6))
    later = data.draw(st.lists(one, max_size=4))

    async def main() -> None:
        async with a_store(kind) as store:
            async with rigged(store) as rig:
                opened = await rig.open(layer, verify, page_bytes=pages)
                assert opened.reader.size_bytes == len(layer.image)
                async with trio.open_nursery() as nursery:
                    for offset, length in together:
                        nursery.start_soon(opened.expect, offset, length)
                for offset, length in later + together:
                    await opened.expect(offset, length)
                    at_hand = opened.reader.read_nowait(offset, length)
                    assert at_hand in (None, layer.image[offset : offset + length])
            async with rigged(store) as rig:  # another mount, of the same cache
                again = await rig.open(layer, verify, page_bytes=pages)
                for offset, length in together:
                    await again.expect(offset, length)

    trio.run(main)


@pytest.mark.parametrize("verify", VerifyMode)
@pytest.mark.parametrize("where", [(0, 4096), (5000, 30_000), (0, 300_000)])
async def test_what_is_stored_and_proven_is_at_hand(verify: VerifyMode, where: tuple[int, int]):
    layer = build.seekable(noise(300_000))
    async with rigged() as rig:
        opened = await rig.open(layer, verify, page_bytes=0)
        assert opened.reader.read_nowait(*where) is None
        assert opened.reader.read_once_nowait(*where) is None
        await opened.expect(*where)
        before = opened.counters.read_bytes
        at_hand = opened.reader.read_once_nowait(*where)
        offset, length = where
        assert at_hand == layer.image[offset : offset + length]
        assert opened.counters.read_bytes == before + length


@pytest.mark.parametrize("verity", [build.Verity(), None])
async def test_a_layer_has_gaps_until_all_of_it_was_fetched(verity: Verity | None):
    layer = build.seekable(noise(300_000), 1000, verity)
    store = MemoryStore()
    async with rigged(store) as rig:
        opened = await rig.open(layer)
        assert opened.reader.has_gaps()
        await opened.expect(0, 290_000)
        assert opened.reader.has_gaps()
        await opened.expect_all()
    async with rigged(store) as rig:  # now all of it has been kept
        assert not (await rig.open(layer)).reader.has_gaps()


async def test_what_is_not_fetched_by_chunks_has_no_gaps():
    async with rigged() as rig:
        opened = await rig.open(build.raw(noise(300_000)))
        assert not opened.reader.has_gaps()


async def test_ranges_that_are_none_are_not_at_hand():
    async with rigged() as rig:
        opened = await rig.open(build.seekable(b"x" * 100))
        await opened.expect(0, 100)
        for offset, length in ((-1, 1), (0, -1), (0, 101), (100, 1), (1 << 70, 1), (0, 0)):
            assert opened.reader.read_once_nowait(offset, length) is None
            assert not opened.reader.read_nowait(offset, length)


@pytest.mark.parametrize(
    ("layer", "verify", "reader", "proof"),
    [
        (build.seekable(b"x" * 99), "always", VerityLayer, "SHA-512 of each frame, dm-verity"),
        (build.seekable(b"x" * 99), "fetch", StoredLayer, "SHA-512 of each frame on arrival"),
        (build.seekable(b"x" * 99), "off", StoredLayer, "nothing"),
        (build.seekable(b"x" * 99, verity=None), "always", FrameLayer, "SHA-512 of each frame"),
        (build.seekable(b"x" * 99, digests=False), "always", VerityLayer, "dm-verity (sha512)"),
        (build.seekable(b"x" * 99, digests=False), "fetch", VerityLayer, "dm-verity (sha512)"),
        (build.seekable(b"x" * 99, verity=None, digests=False), "always", WholeLayer, "sha256 of"),
        (build.raw(b"x" * 99), "always", WholeLayer, "sha256 of the whole blob"),
        (build.zstd(b"x" * 99), "always", WholeLayer, "sha256 of the whole blob"),
        (build.zstd(b"x" * 99), "off", WholeLayer, "sha256 of the whole blob"),
    ],
)
async def test_the_proof_decides_the_reader(layer: Layer, verify, reader, proof):
    async with rigged() as rig:
        opened = (await rig.open(layer, VerifyMode(verify))).opened
        assert type(opened.reader) is reader
        assert opened.proof.startswith(proof)
        assert opened.lazy is (reader is not WholeLayer)
        assert (opened.mode is LayerMode.WHOLE) is (reader is WholeLayer)
        assert opened.why.startswith("fetched whole") is (reader is WholeLayer)


async def test_a_layer_without_a_tree_says_so():
    async with rigged() as rig:
        opened = await rig.open(build.seekable(b"x" * 99, verity=None))
        assert opened.counters.notes == [
            "no dm-verity tree: checked by the SHA-512 of each frame only"
        ]


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, -1), (0, 101), (100, 1), (1 << 70, 1)])
@pytest.mark.parametrize("form", [build.seekable, build.raw, build.zstd])
async def test_a_range_that_passes_the_end_is_refused(form, offset, length):
    async with rigged() as rig:
        opened = await rig.open(form(b"x" * 100))
        with pytest.raises(TruncatedRecordError, match="100 bytes"):
            await opened.reader.read(offset, length)
        assert await opened.reader.read(100, 0) == b""


async def test_small_reads_are_remembered_by_whole_pages():
    layer = build.seekable(noise(3 * PAGE_BYTES + 100))
    async with rigged() as rig:
        opened = await rig.open(layer, page_bytes=1 << 20)
        assert opened.reader.read_nowait(10, 4) is None
        await opened.expect(PAGE_BYTES - 2, 4)
        opened.blob.down = True
        misses = rig.store.statistics().hits
        for offset, length in ((0, 4), (PAGE_BYTES - 4, 4), (PAGE_BYTES, PAGE_BYTES)):
            assert opened.reader.read_nowait(offset, length) == layer.image[offset:][:length]
        assert rig.store.statistics().hits == misses
        assert opened.reader.read_nowait(PAGE_BYTES - 2, 4) is None  # over two pages
        assert opened.reader.read_nowait(3 * PAGE_BYTES, 4) == layer.image[-100:-96]  # stored
        assert opened.reader.read_nowait(3 * PAGE_BYTES, 100) == layer.image[-100:]
        assert opened.reader.read_nowait(3 * PAGE_BYTES, 101) is None  # passes the end

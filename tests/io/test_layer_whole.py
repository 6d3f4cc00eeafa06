"""Layers that are fetched whole: checked before they serve, and proven again from the store."""

import gzip
import hashlib
import logging
import tracemalloc
from dataclasses import replace

import pytest
import trio
import zstandard

import lazyfs.layer.engine
import lazyfs.layer.whole
from cache.memory import MemoryStore
from lazyfs.errors import (
    DigestMismatchError,
    ImageFormatError,
    LazyfsError,
    SourceUnavailableError,
)
from lazyfs.layer.counters import LayerCounters
from lazyfs.layer.pages import PageMemory
from lazyfs.layer.whole import CHUNK_BYTES, WholeLayer
from lazyfs.model import ByteRange
from lazyfs.seekable.mediatypes import LayerEncoding
from registry.digest import Digest
from tests.support import layer_builder as build
from tests.support.blob_simulator import BlobSimulator
from tests.support.layer_builder import Layer
from tests.support.layer_rig import ReadOnlyStore, RottingStore, noise, rigged
from tests.support.settled import wait_all_settled

IMAGE = noise(3 * CHUNK_BYTES + 1000)
RAW = build.raw(IMAGE)
ZSTD = build.zstd(IMAGE)
FORMS = pytest.mark.parametrize("layer", [RAW, ZSTD], ids=["raw", "zstd"])


@pytest.fixture(autouse=True)
def remember_little(monkeypatch):
    """So that chunks come from the store, not from memory."""
    monkeypatch.setattr(lazyfs.layer.engine, "DECODED_BYTES", 0)


async def refusal(layer: Layer, blob: bytes | None = None) -> LazyfsError:
    source = None if blob is None else BlobSimulator(blob)
    async with rigged() as rig:
        with pytest.raises(LazyfsError) as caught:
            await rig.open(layer, blob=source)
    message = str(caught.value)
    assert message.startswith("test/image layer 1: ")
    assert "\n" not in message
    return caught.value


def with_blob(layer: Layer, blob: bytes) -> Layer:
    """Another blob, and a descriptor that knows of it."""
    return replace(layer, blob=blob)


@FORMS
async def test_the_blob_is_fetched_once_and_then_read_without_the_source(layer: Layer):
    async with rigged() as rig:
        blob = BlobSimulator(layer.blob)
        opened = await rig.open(layer, blob=blob)
        blob.down = True
        await opened.expect_all()
        await opened.expect(CHUNK_BYTES - 10, 20)
        assert blob.requests == []


@pytest.mark.parametrize("frame", [1, 1000, CHUNK_BYTES])
async def test_a_zstd_stream_may_have_many_frames(frame: int):
    image = noise(2 * CHUNK_BYTES) if frame == CHUNK_BYTES else noise(3000)
    async with rigged() as rig:
        opened = await rig.open(build.zstd(image, frame))
        await opened.expect_all()


async def test_frames_to_skip_are_skipped():
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"words"
    blob = skippable + zstandard.compress(IMAGE) + skippable + zstandard.compress(b"more")
    layer = replace(with_blob(ZSTD, blob), image=IMAGE + b"more")
    async with rigged() as rig:
        await (await rig.open(layer)).expect_all()


async def test_a_seekable_blob_without_its_annotations_is_read_whole():
    layer = replace(build.seekable(IMAGE), annotations={})
    async with rigged() as rig:
        opened = await rig.open(layer)
        assert isinstance(opened.reader, WholeLayer)
        await opened.expect_all()


@FORMS
@pytest.mark.parametrize("place", [0, 1000, -1])
async def test_a_blob_with_another_digest_is_refused(layer: Layer, place: int):
    blob = bytearray(layer.blob)
    blob[place] ^= 1
    error = await refusal(layer, bytes(blob))
    assert type(error) in (DigestMismatchError, ImageFormatError)
    if layer is RAW:
        assert f"wanted {layer.descriptor.digest}, found sha256:" in str(error)
        assert "registry.test" in str(error)


async def test_a_blob_that_decodes_to_something_else_than_said_is_refused():
    said = f"sha256:{hashlib.sha256(b'else').hexdigest()}"
    layer = build.spec_seekable(IMAGE, verity=None)
    annotations = {"org.erofs.uncompressed-digest": said}
    error = await refusal(replace(layer, annotations=annotations))
    assert type(error) is DigestMismatchError
    assert f"content of the blob from registry.test: wanted {said}, found" in str(error)


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"plain text that is no zstd stream",
        ZSTD.blob + b"garbage",
        ZSTD.blob[:5] + b"\xff" * 10 + ZSTD.blob[15:],
    ],
    ids=["empty", "text", "garbage behind", "damaged"],
)
async def test_a_blob_that_is_no_zstd_stream_is_refused(blob: bytes):
    if not blob:
        async with rigged() as rig:
            assert (await rig.open(with_blob(ZSTD, blob))).reader.size_bytes == 0
        return
    error = await refusal(with_blob(ZSTD, blob))
    assert type(error) is ImageFormatError
    assert "not a zstd stream" in str(error)


@FORMS
@pytest.mark.parametrize("how", ["refused", "short"])
async def test_a_source_that_fails_is_an_error(layer: Layer, how: str):
    blob = BlobSimulator(layer.blob)
    blob.down = how == "refused"
    if how == "short":
        blob.short_at = len(layer.blob) - 10
    with pytest.raises((SourceUnavailableError, DigestMismatchError)):
        async with rigged() as rig:
            await rig.open(layer, blob=blob)


def bomb(gigabytes: int) -> bytes:
    """A small blob of one frame over zeros."""
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    zeros = bytes(16 << 20)
    parts = [compressor.compress(zeros) for _ in range(64 * gigabytes)]
    return b"".join(parts) + compressor.flush()


async def test_a_bomb_costs_no_memory():
    blob = bomb(1)
    assert len(blob) < 200_000
    store = MemoryStore(None)
    tracemalloc.start()
    try:
        async with rigged(store) as rig:
            opened = await rig.open(Layer(b"", blob, ZSTD.media_type))
            assert opened.reader.size_bytes == 1 << 30
            assert await opened.reader.read((1 << 30) - 3, 3) == bytes(3)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32 << 20
    assert store.usage_bytes() < 2 * CHUNK_BYTES


async def test_a_bomb_ends_at_the_limit(monkeypatch):
    monkeypatch.setattr(lazyfs.layer.whole, "MAX_IMAGE_BYTES", 10 << 20)
    store = MemoryStore(None)
    with pytest.raises(ImageFormatError, match="image of more than 10485760 bytes"):
        async with rigged(store) as rig:
            await rig.open(Layer(b"", bomb(1), ZSTD.media_type))


async def test_a_raw_chunk_that_was_evicted_is_fetched_by_range():
    async with rigged(MemoryStore(2 * CHUNK_BYTES)) as rig:
        opened = await rig.open(RAW)
        await opened.expect(10, 10)
        (where,) = opened.blob.forget()
        assert where.offset == 0
        await opened.expect(CHUNK_BYTES + 10, 10)
        (where,) = opened.blob.forget()
        assert where.offset == CHUNK_BYTES
        await opened.expect_all()


async def test_an_evicted_chunk_of_a_stream_is_decoded_from_the_start():
    async with rigged(MemoryStore(2 * CHUNK_BYTES)) as rig:
        opened = await rig.open(ZSTD)
        await opened.expect(CHUNK_BYTES + 10, 10)
        assert opened.blob.forget() == [ByteRange(0, len(ZSTD.blob))]
        await opened.expect_all()


@FORMS
async def test_an_evicted_chunk_that_has_changed_is_refused(layer: Layer, caplog):
    async with rigged(MemoryStore(CHUNK_BYTES)) as rig:
        opened = await rig.open(layer)
        other = (build.raw if layer is RAW else build.zstd)(noise(len(IMAGE), 1))
        assert len(other.blob) == len(layer.blob)
        opened.blob.data = other.blob
        with pytest.raises(DigestMismatchError, match="chunk 0 of the image from registry"):
            await opened.expect(10, 10)
        assert opened.counters.verification_failures == opened.counters.errors == 1
        assert "test/image layer 1" in caplog.text
        opened.blob.data = layer.blob
        await opened.expect_all()


@FORMS
async def test_many_who_miss_chunks_pass_over_the_blob_one_after_the_other(layer: Layer):
    async with rigged(MemoryStore(2 * CHUNK_BYTES)) as rig:
        opened = await rig.open(layer)
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(opened.expect, CHUNK_BYTES + 5, 10)
        assert len(opened.blob.requests) == 1


async def test_one_pass_brings_what_others_wait_for():
    store = RottingStore(None)
    async with rigged(store) as rig:
        opened = await rig.open(ZSTD)
        store._chunks.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opened.expect, 2 * CHUNK_BYTES, 10)
            await wait_all_settled()
            nursery.start_soon(opened.expect, 0, 10)
            nursery.start_soon(opened.expect, CHUNK_BYTES, 10)
        assert len(opened.blob.requests) == 1


@FORMS
async def test_rotten_chunks_are_fetched_again(layer: Layer, caplog):
    store = RottingStore(None)
    async with rigged(store) as rig:
        opened = await rig.open(layer)
        for key in list(store._chunks):
            store.rot(key, 10)
        await opened.expect_all()
        errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
        assert len(errors) == opened.counters.verification_failures == 4
        for word in ("test/image layer 1: chunk 0 from registry.test", "wanted sha512:", "found"):
            assert word in errors[0]
        opened.blob.down = True
        await opened.expect_all()


@FORMS
async def test_rotten_chunks_are_not_served_when_the_source_is_gone(layer: Layer):
    store = RottingStore(None)
    async with rigged(store) as rig:
        opened = await rig.open(layer)
        opened.blob.down = True
        (first, *_) = store._chunks
        store.rot(first, 10)
        for _ in range(2):
            with pytest.raises(SourceUnavailableError):
                await opened.expect(0, 10)
        await opened.expect(CHUNK_BYTES, CHUNK_BYTES)
        assert opened.counters.errors == 2


@FORMS
async def test_without_a_store_that_can_be_written_reads_go_on(layer: Layer, caplog):
    async with rigged(ReadOnlyStore()) as rig:
        opened = await rig.open(layer)
        await opened.expect(CHUNK_BYTES, 10)
        await opened.expect_all()
    assert caplog.text.count("the cache cannot be written") == 1


@FORMS
async def test_a_reader_who_gives_up_ends_its_pass(layer: Layer):
    async with rigged(MemoryStore(CHUNK_BYTES)) as rig:
        opened = await rig.open(layer)
        go = opened.blob.stall_at(1000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opened.expect, CHUNK_BYTES, 10)
            await opened.blob.stalled.wait()
            nursery.cancel_scope.cancel()
        assert opened.blob.cancelled == 1
        go()
        await opened.expect_all()


async def test_a_gzipped_device_is_read_whole():
    image = noise(CHUNK_BYTES + 5)
    blob = gzip.compress(image)
    annotations = {"org.erofs.role": "device"}
    device = Layer(image, blob, "application/vnd.oci.image.layer.v1.tar+gzip", annotations)
    for data, wanted in ((blob, None), (blob[:-9], ImageFormatError), (b"text", ImageFormatError)):
        plan = replace(
            build.zstd(b"x").plan(),
            encoding=LayerEncoding.GZIP,
            descriptor=replace(device.descriptor, digest=Digest.of(data), size_bytes=len(data)),
        )
        async with rigged() as rig:
            source = BlobSimulator(data)
            layer = WholeLayer(
                plan, source, LayerCounters(), rig.engine, PageMemory(0), 0, "test/image layer 1"
            )
            if wanted is None:
                await layer.fill()
                assert await layer.read(0, layer.size_bytes) == image
            else:
                with pytest.raises(wanted, match="not a gzip stream"):
                    await layer.fill()

"""How chunks are asked for: once, neighbours together, for whoever still waits."""

import logging
from unittest.mock import patch

import pytest
import trio
from trio.testing import MockClock

import lazyfs.layer.fetcher
from cache.key import ChunkKey
from cache.memory import MemoryStore
from lazyfs.errors import DeadlineExceededError, SourceUnavailableError
from lazyfs.layer.fetcher import SLOWEST_BYTES_PER_S
from lazyfs.layer.piece import cut
from lazyfs.model import ByteRange, VerifyMode
from tests.support import layer_builder as build
from tests.support.blob_simulator import PIECE_BYTES
from tests.support.layer_builder import Layer
from tests.support.layer_rig import Opened, ReadOnlyStore, noise, rigged
from tests.support.settled import wait_all_settled

CHUNK = 65536
IMAGE = noise(8 * CHUNK + 1000)
LAYERS = [
    pytest.param(build.seekable(IMAGE, CHUNK), id="tree"),
    pytest.param(build.seekable(IMAGE, CHUNK, None), id="frames"),
]


def spanning(layer: Layer, first: int, last: int) -> ByteRange:
    """From the first byte of one frame to the last of another."""
    start = layer.frames[first].offset
    return ByteRange(start, layer.frames[last].end - start)


class Readers:
    """Tasks that read, and what became of them."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.done: list[bool | Exception] = []

    async def read(self, offset: int, length: int) -> None:
        try:
            await self.opened.expect(offset, length)
        except SourceUnavailableError as error:
            self.done.append(error)
        else:
            self.done.append(True)


@pytest.mark.parametrize("layer", LAYERS)
async def test_a_chunk_is_fetched_once_however_many_want_it(layer: Layer):
    async with rigged() as rig:
        opened = await rig.open(layer)
        go = opened.blob.stall_at()
        readers = Readers(opened)
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(readers.read, 3 * CHUNK + 100 * number, 5000)
            await opened.blob.stalled.wait()
            await wait_all_settled()
            assert readers.done == []
            go()
        assert readers.done == [True] * 50
        await opened.expect(3 * CHUNK, CHUNK)
        assert opened.blob.requests == [spanning(layer, 3, 3)]


@pytest.mark.parametrize("layer", LAYERS)
async def test_missing_neighbours_are_one_request(layer: Layer):
    async with rigged() as rig:
        opened = await rig.open(layer)
        await opened.expect(4 * CHUNK, 10)
        assert opened.blob.forget() == [spanning(layer, 4, 4)]
        await opened.expect_all()
        wanted = [spanning(layer, 0, 3), spanning(layer, 5, 8)]
        assert sorted(opened.blob.forget()) == wanted
        await opened.expect_all()
        assert opened.blob.requests == []


async def test_a_run_is_cut_where_it_becomes_too_long(monkeypatch):
    monkeypatch.setattr(lazyfs.layer.fetcher, "RUN_BYTES", 3 * CHUNK)
    layer = build.seekable(IMAGE, CHUNK)
    async with rigged() as rig:
        opened = await rig.open(layer)
        await opened.expect_all()
        wanted = [spanning(layer, first, last) for first, last in ((0, 1), (2, 3), (4, 5), (6, 8))]
        assert sorted(opened.blob.requests) == wanted


async def test_requests_under_way_at_once_are_bounded():
    layer = build.seekable(IMAGE, CHUNK)
    async with rigged() as rig:
        rig.engine.requests.total_tokens = 2
        opened = await rig.open(layer)
        go = opened.blob.stall_at()
        async with trio.open_nursery() as nursery:
            for chunk in (0, 2, 4, 6):
                nursery.start_soon(opened.expect, chunk * CHUNK, 10)
            await wait_all_settled()
            assert len(opened.blob.requests) == 2
            go()
        assert len(opened.blob.requests) == 4


async def test_chunks_that_are_alike_are_fetched_once():
    layer = build.seekable(bytes(5 * CHUNK), CHUNK)
    async with rigged() as rig:
        opened = await rig.open(layer)
        await opened.expect_all()
        assert opened.blob.requests == [spanning(layer, 0, 0)]


async def test_layers_share_chunks_through_the_store():
    one = build.seekable(IMAGE, CHUNK)
    other = build.seekable(IMAGE[: 3 * CHUNK] + noise(CHUNK, 1), CHUNK)
    async with rigged() as rig:
        await (await rig.open(one)).expect_all()
        opened = await rig.open(other)
        await opened.expect_all()
        assert opened.blob.requests == [spanning(other, 3, 3)]


@pytest.mark.parametrize("layer", LAYERS)
async def test_a_reader_who_gives_up_leaves_the_fetch_to_others(layer: Layer):
    async with rigged() as rig:
        opened = await rig.open(layer)
        go = opened.blob.stall_at()
        readers = Readers(opened)
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                nursery.start_soon(readers.read, 10, 10)

                async def give_up() -> None:
                    await opened.blob.stalled.wait()
                    scope.cancel()

                nursery.start_soon(give_up)
                await opened.expect(0, 10)
            assert scope.cancelled_caught
            go()
        assert readers.done == [True]
        assert opened.blob.requests == [spanning(layer, 0, 0)]
        assert opened.blob.cancelled == 0


@pytest.mark.parametrize("layer", LAYERS)
async def test_when_all_readers_gave_up_the_next_one_gets_the_chunk(layer: Layer):
    async with rigged() as rig:
        opened = await rig.open(layer)
        go = opened.blob.stall_at()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(opened.expect, 0, 10)
                await opened.blob.stalled.wait()
                scope.cancel()
        go()
        await opened.expect(0, 10)
        assert opened.blob.requests == [spanning(layer, 0, 0)]


@pytest.mark.parametrize("how", ["refused", "short", "reset"])
@pytest.mark.parametrize("layer", LAYERS)
async def test_all_readers_fail_with_the_source_and_later_ones_try_again(layer: Layer, how: str):
    async with rigged() as rig:
        opened = await rig.open(layer)
        blob = opened.blob
        go = blob.stall_at(layer.frames[2].offset + 100)
        readers = Readers(opened)
        if how == "refused":
            blob.down = True
        if how == "short":
            blob.short_at = layer.frames[2].offset + 20_000
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(readers.read, 2 * CHUNK + number, 10)
            await wait_all_settled()
            if how == "reset":
                blob.down = True
            go()
        assert len(readers.done) == 10
        assert len({str(error) for error in readers.done}) == 1
        assert isinstance(readers.done[0], SourceUnavailableError)
        assert len(blob.forget()) == 1
        assert opened.counters.errors == 1
        assert opened.counters.last_error == f"SourceUnavailableError: {readers.done[0]}"
        assert opened.counters.verification_failures == 0
        blob.down, blob.short_at = False, None
        await opened.expect(2 * CHUNK, 10)
        assert blob.requests == [spanning(layer, 2, 2)]


async def test_a_source_that_is_gone_is_logged_once_until_it_answers(caplog):
    layer = build.seekable(IMAGE, CHUNK)
    async with rigged() as rig:
        opened = await rig.open(layer)
        for expected in (1, 2):
            opened.blob.down = True
            for _ in range(5):
                with pytest.raises(SourceUnavailableError):
                    await opened.expect_all()
            events = [record.event for record in caplog.records]
            assert events == ["layer_degraded", "layer_recovered", "layer_degraded"][: len(events)]
            assert len(events) == 2 * expected - 1
            assert "test/image layer 1: chunk" in caplog.text
            opened.blob.down = False
            await opened.expect(expected * CHUNK, 10)
        assert opened.counters.errors == 5 * 9 + 5 * 8


async def test_without_verification_failures_of_a_raw_layer_count():
    async with rigged() as rig:
        opened = await rig.open(build.raw(IMAGE), VerifyMode.OFF)
        opened.blob.down = True
        with pytest.raises(SourceUnavailableError):
            await opened.expect(0, 10)
        assert opened.counters.errors == 1
        assert "connection refused" in (opened.counters.last_error or "")
        opened.blob.down = False
        await opened.expect_all()


async def test_chunks_that_came_before_the_source_failed_are_kept():
    layer = build.seekable(IMAGE, CHUNK)
    async with rigged() as rig:
        opened = await rig.open(layer)
        opened.blob.short_at = layer.frames[3].offset + 5
        with pytest.raises(SourceUnavailableError):
            await opened.expect_all()
        opened.blob.forget()
        opened.blob.short_at = None
        await opened.expect(0, 3 * CHUNK)
        assert opened.blob.requests == []


async def test_a_source_that_sends_too_much_does_no_harm():
    layer = build.seekable(IMAGE, CHUNK)
    async with rigged() as rig:
        opened = await rig.open(layer)
        opened.blob.long_by = 3 * CHUNK
        await opened.expect(CHUNK, 3 * CHUNK)
        assert opened.counters.errors == 0


@pytest.mark.parametrize("layer", LAYERS)
async def test_without_a_store_that_can_be_written_reads_go_on(layer: Layer, caplog):
    store = ReadOnlyStore()
    async with rigged(store) as rig:
        opened = await rig.open(layer)
        for _ in range(3):
            await opened.expect(0, 10)
        await opened.expect(CHUNK, CHUNK)
    assert store.tried >= 2
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.getMessage() for record in warnings] == [
        "the cache cannot be written, reading on without it: read-only file system"
    ]


async def test_without_a_store_one_read_of_many_chunks_asks_for_each_once():
    layer = build.seekable(IMAGE, CHUNK)
    async with rigged(ReadOnlyStore()) as rig:
        opened = await rig.open(layer)
        await opened.expect(CHUNK, 5 * CHUNK)
        assert opened.blob.requests == [spanning(layer, 1, 5)]


async def test_the_warning_about_the_store_comes_again_after_it_had_worked(caplog):
    layer = build.seekable(IMAGE, CHUNK)
    store = MemoryStore(CHUNK + 8192)  # the hash tree fits, two chunks do not
    async with rigged(store) as rig:
        opened = await rig.open(layer)
        rig.engine.store_failed = True
        await opened.expect(0, 10)
        assert not rig.engine.store_failed
    assert [record.event for record in caplog.records] == ["cache_recovered"]


@pytest.mark.parametrize("layer", LAYERS)
async def test_a_stalled_source_is_given_up_and_asked_again(layer: Layer, mock_clock: MockClock):
    async with rigged(timeout_s=30) as rig:
        opened = await rig.open(layer)
        blob = opened.blob
        go = blob.stall_at(layer.frames[0].offset + 2 * PIECE_BYTES)
        readers = Readers(opened)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(readers.read, 5, 10)
            await blob.stalled.wait()
            await wait_all_settled()
            mock_clock.jump(29.9 + layer.frames[0].length / SLOWEST_BYTES_PER_S)
            await wait_all_settled()
            assert readers.done == []
            mock_clock.jump(0.2)
        assert [type(error) for error in readers.done] == [DeadlineExceededError] * 3
        assert "registry.test" in str(readers.done[0])
        assert blob.cancelled == 1
        go()
        await opened.expect(5, 10)


async def test_who_joins_a_fetch_late_has_a_try_of_his_own(mock_clock: MockClock):
    layer = build.seekable(IMAGE, CHUNK)
    async with rigged(timeout_s=30) as rig:
        opened = await rig.open(layer)
        blob = opened.blob
        go = blob.stall_at(layer.frames[0].offset + 2 * PIECE_BYTES)
        first, late = Readers(opened), Readers(opened)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.read, 5, 10)
            await blob.stalled.wait()
            mock_clock.jump(29)
            nursery.start_soon(late.read, 5, 10)
            await wait_all_settled()
            mock_clock.jump(1.1 + layer.frames[0].length / SLOWEST_BYTES_PER_S)
            await wait_all_settled()
            assert [type(error) for error in first.done] == [DeadlineExceededError]
            assert late.done == []
            go()
        assert late.done == [True]


async def test_a_source_that_lies_and_then_stalls_is_given_up_too(mock_clock: MockClock):
    layer = build.seekable(IMAGE, CHUNK)
    async with rigged(timeout_s=30) as rig:
        opened = await rig.open(layer)
        blob = opened.blob
        blob.lie(100)
        blob.stall_at(requests_before=1)
        readers = Readers(opened)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(readers.read, 5, 10)
            await blob.stalled.wait()
            mock_clock.jump(1000)
        assert [type(error) for error in readers.done] == [DeadlineExceededError]
        assert len(blob.requests) == 2


@pytest.mark.parametrize("verify", VerifyMode)
async def test_the_end_of_the_mount_wakes_who_waits(verify: VerifyMode):
    layer = build.seekable(IMAGE, CHUNK)
    async with rigged() as rig:
        opened = await rig.open(layer, verify)
        opened.blob.stall_at()
        readers = Readers(opened)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(readers.read, 5, 10)
            nursery.start_soon(readers.read, 2 * CHUNK, 3 * CHUNK)
            await opened.blob.stalled.wait()
            await wait_all_settled()
            rig.nursery.cancel_scope.cancel()
            # Who is cancelled with the mount needs no answer; who is not gets one.
            with trio.CancelScope(shield=True):
                late = Readers(opened)
                await late.read(7 * CHUNK, 10)
    assert {str(error) for error in readers.done + late.done} <= {"the mount is ending"}
    assert late.done


async def test_what_a_reader_got_is_kept_although_the_mount_ends():
    layer = build.seekable(IMAGE, CHUNK)
    async with rigged() as rig:
        opened = await rig.open(layer)
        writers = trio.CapacityLimiter(1)
        put = rig.store.put

        async def slowly(key: ChunkKey, data: bytes) -> None:
            async with writers:
                await put(key, data)

        with patch.object(rig.store, "put", slowly):
            async with writers:
                await opened.expect(CHUNK, 10)
                rig.nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await wait_all_settled()
    assert rig.store.contains(opened.key(1))


async def test_a_bug_on_the_way_is_an_error_of_that_read_only(monkeypatch, caplog):
    layer = build.seekable(IMAGE, CHUNK)
    async with rigged() as rig:
        opened = await rig.open(layer)
        stream = opened.blob.stream

        def broken(where: ByteRange):
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(opened.blob, "stream", broken)
        with pytest.raises(SourceUnavailableError, match="internal error"):
            await opened.expect(0, 10)
        assert any(record.exc_info for record in caplog.records)
        monkeypatch.setattr(opened.blob, "stream", stream)
        await opened.expect(0, 10)


@pytest.mark.parametrize("sizes", [[1], [7, 1, 1], [3] * 5, [100], [50, 50], [99, 1]])
@pytest.mark.parametrize("lengths", [[100], [1] * 100, [33, 33, 34], [99, 1], [10, 80, 10]])
async def test_streams_are_cut_at_any_border(sizes: list[int], lengths: list[int]):
    data = noise(100)

    async def stream():
        at, turn = 0, 0
        while at < len(data):
            size = sizes[turn % len(sizes)]
            yield data[at : at + size]
            at, turn = at + size, turn + 1
            await trio.lowlevel.checkpoint()

    pieces = [piece async for piece in cut(stream(), lengths)]
    assert [len(piece) for piece in pieces] == lengths
    assert b"".join(pieces) == data


async def test_a_stream_that_ends_early_is_an_error():
    async def stream():
        yield b"12345"
        await trio.lowlevel.checkpoint()

    pieces = cut(stream(), [4, 4])
    assert await anext(pieces) == b"1234"
    with pytest.raises(SourceUnavailableError, match="3 bytes early"):
        await anext(pieces)

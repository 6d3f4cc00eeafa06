"""What nobody waits for: in turns, overtaken by readers, with short gaps bridged."""

import pytest
import trio

from lazyfs.errors import SourceUnavailableError
from lazyfs.layer.line import Line
from lazyfs.layer.turns import Turns
from lazyfs.model import ByteRange
from tests.support import layer_builder as build
from tests.support.layer_rig import Opened, Rig, noise, rigged
from tests.support.settled import wait_all_settled

CHUNK = 64 << 10
CHUNKS = 16
THIN = 200_000
"""Bytes a second: room for one or two chunks in the background."""


async def opened(rig: Rig, rate: float | None) -> Opened:
    layer = await rig.open(build.seekable(noise(CHUNKS * CHUNK), CHUNK, None))
    rig.engine.turns.line.bytes_per_s = rate
    return layer


async def all_in_background(layer: Opened) -> None:
    layer.reader.begin(0, CHUNKS * CHUNK, background=True)
    await wait_all_settled()


async def test_on_a_thin_line_one_short_request_after_the_other():
    async with rigged() as rig:
        layer = await opened(rig, THIN)
        go_on = layer.blob.stall_at()
        await all_in_background(layer)
        (first,) = layer.blob.requests
        assert first.length < 3 * CHUNK
        go_on()
        await layer.expect_all()
        assert layer.blob.fetched_bytes == len(layer.layer.blob[: layer.layer.frames[-1].end])


async def test_a_reader_does_not_wait_for_its_turn():
    async with rigged() as rig:
        layer = await opened(rig, THIN)
        go_on = layer.blob.stall_at(requests_before=0)
        await all_in_background(layer)
        assert len(layer.blob.requests) == 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(layer.expect, (CHUNKS - 1) * CHUNK, 100)
            await wait_all_settled()
            assert len(layer.blob.requests) == 2
            assert layer.blob.requests[1].end == layer.layer.frames[-1].end
            go_on()
        await layer.expect_all()


async def test_on_an_unknown_line_a_little_is_under_way():
    async with rigged() as rig:
        layer = await opened(rig, None)
        go_on = layer.blob.stall_at()
        await all_in_background(layer)
        assert 1 <= len(layer.blob.requests) <= 2
        assert layer.blob.fetched_bytes <= 1 << 20
        go_on()


async def test_short_gaps_are_fetched_along_and_kept():
    async with rigged() as rig:
        layer = await opened(rig, 1e9)
        chunks = layer.opened.chunks
        assert chunks is not None
        await layer.expect(3 * CHUNK, 10)  # the store has this one
        layer.blob.forget()
        frames = layer.layer.frames
        pieces = [chunks.piece(index) for index in (0, 2, 4, 12)]
        await fetch(layer, rig, pieces)
        assert sorted(layer.blob.forget()) == [(0, frames[4].end), frames[12]]
        for index in (0, 1, 2, 4):
            await layer.expect(index * CHUNK, 10)
        assert layer.blob.requests == []


async def fetch(layer: Opened, rig: Rig, pieces: list) -> None:
    fetcher = layer.reader._fetcher  # type: ignore[attr-defined]
    await fetcher.have(pieces)
    await wait_all_settled(0.05)


async def test_what_does_not_come_is_not_waited_for_in_the_count():
    async with rigged() as rig:
        layer = await opened(rig, THIN)
        layer.blob.down = True
        with pytest.raises(SourceUnavailableError):
            await layer.reader.have([ByteRange(0, CHUNKS * CHUNK)])
        with pytest.raises(SourceUnavailableError):
            await layer.reader.read(0, CHUNK)
        await wait_all_settled(0.05)
        assert rig.engine.turns.line.under_way == 0
        layer.blob.down = False
        await layer.expect_all()


async def test_random_reads_fetch_nothing_in_vain_and_sequential_ones_go_ahead():
    async with rigged() as rig:
        layer = await opened(rig, None)
        for index in (9, 2, 15, 6):
            await layer.expect(index * CHUNK + 100, 20_000)
        await wait_all_settled(0.05)
        assert layer.blob.fetched_bytes <= 4 * max(frame.length for frame in layer.layer.frames)
    async with rigged() as rig:
        layer = await opened(rig, None)
        for start in range(0, 4 * CHUNK, CHUNK // 2):
            await layer.expect(start, CHUNK // 2)
        await wait_all_settled(0.05)
        asked = max(where.end for where in layer.blob.requests)
        assert layer.layer.frames[5].end <= asked <= layer.layer.frames[8].end


async def test_those_who_wait_for_their_turn_get_it_in_order_or_when_they_are_in_a_hurry():
    turns = Turns(Line(bytes_per_s=4000.0))  # room for 1000 bytes
    served: list[int] = []
    lined_up = [turns.line_up(800) for _ in range(5)]

    async def wait(number: int) -> None:
        await turns.wait(lined_up[number])
        served.append(number)

    async with trio.open_nursery() as nursery:
        turns.asked(900)
        for number in range(4):
            nursery.start_soon(wait, number)
            await wait_all_settled()
        assert served == []
        lined_up[2].go.set()
        await wait_all_settled()
        assert served == [2]
        with trio.CancelScope() as scope:
            scope.cancel()
            await wait(4)
        with turns.answer(900), turns.answer(800):
            assert turns.line.under_way == 1700
        await wait_all_settled()
        assert served == [2, 0]
        for number in (1, 3):
            with turns.answer(800):
                assert served[-1] != number
            await wait_all_settled()
            assert served[-1] == number
    with turns.answer(800):
        pass
    assert turns.line.under_way == 0

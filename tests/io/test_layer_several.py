"""Pieces that lie apart by one request: what a profile names, and the hash blocks for it."""

import pytest
import trio

from lazyfs.errors import SourceUnavailableError
from lazyfs.model import ByteRange, VerifyMode
from tests.support import layer_builder as build
from tests.support.layer_builder import Layer
from tests.support.layer_rig import Opened, Rig, noise, rigged
from tests.support.settled import wait_all_settled

CHUNK = 16384
COUNT = 200
APART = [150, 3, 80, 81, 7, 199]
"""As a profile names them."""


@pytest.fixture(scope="module")
def layer() -> Layer:
    return build.seekable(noise(COUNT * CHUNK), CHUNK)


def chunk(number: int) -> ByteRange:
    return ByteRange(number * CHUNK, CHUNK)


async def opened(rig: Rig, layer: Layer, verify: VerifyMode = VerifyMode.FETCH) -> Opened:
    found = await rig.open(layer, verify)
    found.blob.ranges_at_once = 32
    found.blob.together.clear()
    return found


def frames(layer: Layer, *numbers: int) -> ByteRange:
    start = layer.frames[numbers[0]].offset
    return ByteRange(start, layer.frames[numbers[-1]].end - start)


async def test_they_come_by_one_request_in_their_order(layer: Layer):
    async with rigged() as rig:
        found = await opened(rig, layer)
        await found.reader.have([chunk(number) for number in APART])
        assert found.blob.requests == [
            *(frames(layer, 150), frames(layer, 3), frames(layer, 80, 81)),
            *(frames(layer, 7), frames(layer, 199)),
        ]
        assert found.blob.together == [5]
        for number in APART:
            await found.expect(*chunk(number))
        assert found.blob.together == [5], "all of them are in the store"


async def test_no_request_asks_for_more_than_its_source_gives_at_once(layer: Layer):
    async with rigged() as rig:
        found = await opened(rig, layer)
        found.blob.ranges_at_once = 4
        await found.reader.have([chunk(number) for number in range(0, 100, 10)])
        assert sorted(found.blob.together) == [2, 4, 4]


async def test_hash_blocks_for_them_come_by_one_request():
    layer = build.seekable(noise(2000 * CHUNK), CHUNK)
    apart = range(1900, 0, -300)
    async with rigged() as rig:
        found = await opened(rig, layer, VerifyMode.ALWAYS)
        await found.reader.have([chunk(number) for number in apart])
        # Some hash blocks have come while the layer was opened.
        assert sorted(found.blob.together) == [6, 7], "hash blocks, and chunks"
        for number in apart:
            await found.expect(*chunk(number))
        assert len(found.blob.together) == 2


async def test_where_they_do_not_come_so_each_is_asked_for(layer: Layer):
    async with rigged() as rig:
        found = await opened(rig, layer)
        found.blob.sends_several = False
        await found.reader.have([chunk(number) for number in APART])
        assert found.blob.together == [5, 1, 1, 1, 1, 1]
        for number in APART:
            await found.expect(*chunk(number))
        assert len(found.blob.together) == 6
        assert found.counters.errors == 0


async def test_what_came_before_an_answer_broke_off_is_kept(layer: Layer):
    async with rigged() as rig:
        found = await opened(rig, layer)
        go = found.blob.stall_at(layer.frames[199].offset)

        async def break_off() -> None:
            await found.blob.stalled.wait()
            await found.expect(*chunk(7))
            found.blob.down = True
            go()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(break_off)
            with pytest.raises(SourceUnavailableError):
                await found.reader.have([chunk(number) for number in APART])
        assert found.blob.together == [5, 1]
        assert found.counters.errors == 1
        for number in APART[:-1]:
            await found.expect(*chunk(number))


async def test_a_reader_takes_out_what_he_wants_before_its_turn(layer: Layer):
    async with rigged() as rig:
        found = await opened(rig, layer)
        line = rig.engine.turns.line
        line.asked(1 << 30)  # no room for anything in the background
        async with trio.open_nursery() as nursery:
            nursery.start_soon(found.reader.have, [chunk(number) for number in APART])
            await wait_all_settled()
            assert found.blob.requests == []
            await found.expect(*chunk(7))
            assert found.blob.requests == [frames(layer, 7)]
            line.given_up(1 << 30)
            rig.engine.turns.received()
        assert sorted(found.blob.together) == [1, 1, 3]
        rest = (frames(layer, 150), frames(layer, 3), frames(layer, 80, 81), frames(layer, 199))
        assert sorted(found.blob.requests[1:]) == sorted(rest)


async def test_a_wrong_piece_among_them_is_asked_for_alone(layer: Layer):
    async with rigged() as rig:
        found = await opened(rig, layer)
        found.blob.lie(layer.frames[3].offset + 50, times=1)
        await found.reader.have([chunk(number) for number in APART])
        assert found.blob.together == [5, 1]
        assert found.blob.requests[-1] == frames(layer, 3)
        for number in APART:
            await found.expect(*chunk(number))

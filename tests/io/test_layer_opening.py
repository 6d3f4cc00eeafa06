"""The beginning of a blob as it came along with another range: used once, and never believed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from lazyfs.errors import SourceUnavailableError
from lazyfs.layer.line import Line
from lazyfs.layer.opening import BRIDGE_BYTES, OpeningSource
from lazyfs.layer.turns import Turns
from lazyfs.model import ByteRange
from tests.support.blob_simulator import BlobSimulator
from tests.support.layer_rig import noise
from tests.support.simulated_line import BlobOnLine, SimulatedLine

ALONG = 10_000
FAR = ByteRange(ALONG + BRIDGE_BYTES + 1, 500)
NEAR = ByteRange(ALONG + BRIDGE_BYTES, 500)


def blob() -> BlobSimulator:
    return BlobSimulator(noise(ALONG + BRIDGE_BYTES + 5000))


async def streamed(source: OpeningSource, where: ByteRange) -> bytes:
    async with source.stream(where) as pieces:
        return b"".join([piece async for piece in pieces])


async def test_it_comes_beside_a_range_that_is_far_and_with_one_that_is_near():
    for where, requests in ((FAR, {FAR, (0, ALONG)}), (NEAR, {(0, NEAR.end)})):
        data = blob()
        source = OpeningSource(data, ALONG, Turns(Line()))
        assert await source.fetch(where) == data.data[where.offset : where.end]
        assert set(data.forget()) == requests
        assert source.beginning_bytes >= ALONG
        assert await source.fetch(where) == data.data[where.offset : where.end]
        assert data.forget() == [where]


async def test_what_is_there_is_not_asked_for_and_the_rest_is():
    data = blob()
    source = OpeningSource(data, ALONG, Turns(Line()))
    await source.fetch(FAR)
    data.forget()
    assert await streamed(source, ByteRange(100, 200)) == data.data[100:300]
    assert data.forget() == []
    span = ByteRange(ALONG - 50, 150)
    assert await streamed(source, span) == data.data[span.offset : span.end]
    assert data.forget() == [(ALONG, 100)]
    assert await streamed(source, FAR) == data.data[FAR.offset : FAR.end]
    assert data.forget() == [FAR]


async def test_wrong_bytes_are_asked_for_again():
    data = blob()
    data.lie(120, times=1)
    source = OpeningSource(data, ALONG, Turns(Line()))
    await source.fetch(FAR)
    data.forget()
    span = ByteRange(100, 200)
    assert await streamed(source, span) != data.data[100:300]
    assert source.distrust(span) == data.origin
    assert await streamed(source, span) == data.data[100:300]
    assert data.forget() == [span]


async def test_who_wants_the_beginning_only_is_told_that_it_cannot_be_had():
    class WithoutBeginning(BlobSimulator):
        @asynccontextmanager
        async def stream(self, *ranges: ByteRange) -> AsyncIterator[AsyncIterator[bytes]]:
            if ranges == ((0, ALONG),):
                await trio.lowlevel.checkpoint()
                raise SourceUnavailableError("not this")
            async with super().stream(*ranges) as pieces:
                yield pieces

    data = WithoutBeginning(blob().data)
    source = OpeningSource(data, ALONG, Turns(Line()))
    assert await source.fetch(FAR) == data.data[FAR.offset : FAR.end]
    assert source.beginning_bytes == 0
    assert await streamed(source, ByteRange(0, 10)) == data.data[:10]


async def test_the_line_is_measured_by_what_comes(autojump_clock: trio.testing.MockClock):
    data = BlobOnLine(noise(1 << 20), SimulatedLine(0.05, 100e6))
    turns = Turns(Line())
    await OpeningSource(data, 128 << 10, turns).fetch(ByteRange(1 << 19, 160 << 10))
    assert turns.line.round_trip_s == pytest.approx(0.1, rel=0.05)  # connections are new
    assert turns.line.bytes_per_s == pytest.approx(100e6 / 8, rel=0.2)
    assert turns.line.is_long
    assert turns.line.under_way == 0

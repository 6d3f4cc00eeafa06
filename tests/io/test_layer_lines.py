"""How long reading takes over lines of all kinds, in virtual time: what planning gains."""

import random
from dataclasses import dataclass

import pytest
import trio
import trio.testing

from lazyfs.model import ByteRange
from tests.support import layer_builder as build
from tests.support.layer_builder import Layer
from tests.support.layer_rig import noise, rigged
from tests.support.simulated_line import open_on_line

pytestmark = pytest.mark.usefixtures("no_threads")

CHUNK = 128 << 10
SIZE = 16 << 20
READ = 128 << 10

LINES = [(rtt_ms, mbit) for rtt_ms in (0.5, 5, 50) for mbit in (10, 100, 1000)]


@pytest.fixture(scope="module")
def layer() -> Layer:
    return build.seekable(noise(SIZE), CHUNK)


@dataclass(frozen=True)
class Cost:
    """Of some work."""

    seconds: float
    fetched_bytes: int
    requests: int


async def sequential(layer: Layer, line: tuple[float, float], *, ahead: bool) -> Cost:
    """Read all, one part after the other."""
    async with rigged() as rig:
        layer_opened, blob = await open_on_line(rig, layer, *line)
        if not ahead:
            layer_opened.reader.ahead = None
        began = trio.current_time()
        for offset in range(0, SIZE, READ):
            await layer_opened.reader.read_once(offset, READ)
        return Cost(trio.current_time() - began, blob.fetched_bytes, len(blob.requests))


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line[0]}ms-{line[1]}Mbit")
async def test_who_reads_all_gets_it_at_the_speed_of_the_line(
    layer: Layer, line: tuple[float, float], autojump_clock: trio.testing.MockClock
):
    with_ahead = await sequential(layer, line, ahead=True)
    without = await sequential(layer, line, ahead=False)
    rtt_s, bytes_per_s = line[0] / 1e3, line[1] * 1e6 / 8
    assert with_ahead.seconds < 12 * rtt_s + 1.1 * SIZE / bytes_per_s
    assert with_ahead.seconds < 1.02 * without.seconds
    assert with_ahead.fetched_bytes < 1.02 * without.fetched_bytes


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line[0]}ms-{line[1]}Mbit")
async def test_random_reads_fetch_no_more_than_without_read_ahead(
    layer: Layer, line: tuple[float, float], autojump_clock: trio.testing.MockClock
):
    costs = []
    for ahead in (False, True):
        async with rigged() as rig:
            layer_opened, blob = await open_on_line(rig, layer, *line)
            if not ahead:
                layer_opened.reader.ahead = None
            rng = random.Random(3)
            began = trio.current_time()
            for _ in range(60):
                # 20 KiB: longer than what goes through the memory of pages
                await layer_opened.reader.read_once(rng.randrange(SIZE - 20_480), 20_480)
            costs.append(Cost(trio.current_time() - began, blob.fetched_bytes, len(blob.requests)))
    assert costs[1].fetched_bytes <= 1.1 * costs[0].fetched_bytes
    assert costs[1].seconds <= 1.1 * costs[0].seconds


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line[0]}ms-{line[1]}Mbit")
async def test_a_reader_is_not_kept_up_by_the_background(
    layer: Layer, line: tuple[float, float], autojump_clock: trio.testing.MockClock
):
    """One chunk is wanted in the middle of the fetch of all."""
    async with rigged() as rig:
        layer_opened, _ = await open_on_line(rig, layer, *line)
        rtt_s, bytes_per_s = line[0] / 1e3, line[1] * 1e6 / 8
        async with trio.open_nursery() as nursery:
            nursery.start_soon(layer_opened.reader.have, [ByteRange(0, SIZE)])
            await trio.sleep(2 * rtt_s + SIZE / bytes_per_s / 4)
            began = trio.current_time()
            await layer_opened.reader.read_once(120 * CHUNK, 20_480)
            waited = trio.current_time() - began
            assert waited < 0.3 + 6 * rtt_s + 2 * CHUNK / bytes_per_s
        finished = trio.current_time()
        assert finished < 2 + 20 * rtt_s + 1.2 * SIZE / bytes_per_s

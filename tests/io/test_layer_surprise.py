"""What a startup profile costs readers whom it does not fit, over lines of all kinds.

In virtual time.
"""

import random
from collections.abc import Sequence

import pytest
import trio
import trio.testing

from lazyfs.layer.prefetch import Progress, fetch_planned
from lazyfs.profile.batches import Plan
from lazyfs.profile.document import BLOCK_BYTES, BlockRun
from tests.support import layer_builder as build
from tests.support.layer_builder import Layer
from tests.support.layer_rig import Opened, noise, rigged
from tests.support.simulated_line import open_on_line

pytestmark = pytest.mark.usefixtures("no_threads")

CHUNK = 128 << 10
BLOCKS = CHUNK // BLOCK_BYTES
COUNT = 240
READ = 20_480
"""Longer than what goes through the memory of pages."""

THINK_S = 0.01
"""What a program does between two reads."""

LINES = [(5, 10), (50, 10), (0.5, 100), (5, 100), (50, 100)]

CHUNKS = random.Random(7).sample(range(COUNT), COUNT)
NAMED, OTHERS = CHUNKS[:100], CHUNKS[100:160]


@pytest.fixture(scope="module")
def layer() -> Layer:
    return build.seekable(noise(COUNT * CHUNK), CHUNK)


def planned(found: Opened, named: Sequence[int]) -> Plan:
    """That of a profile that names some chunks."""
    chunks = found.opened.chunks
    assert chunks is not None
    runs = [BlockRun(0, chunk * BLOCKS, BLOCKS) for chunk in named]
    return Plan(runs, {0: (chunks.table, chunks.image_size_bytes)})


async def seconds(
    layer: Layer, line: tuple[float, float], chunks: Sequence[int], named: Sequence[int] = ()
) -> float:
    """How long a reader takes for chunks, while those that a profile names are fetched."""
    async with rigged() as rig:
        found, _ = await open_on_line(rig, layer, *line)
        plan = planned(found, named)
        found.reader.announce(set(named))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch_planned, plan, {0: found.reader}, Progress())
            began_s = trio.current_time()
            for chunk in chunks:
                await found.expect(chunk * CHUNK, READ)
                await trio.sleep(THINK_S)
            taken_s = trio.current_time() - began_s
            nursery.cancel_scope.cancel()
    return taken_s


@pytest.mark.parametrize("line", LINES)
async def test_a_profile_of_something_else_takes_little_time(
    layer: Layer, line: tuple[float, float], autojump_clock: trio.testing.MockClock
):
    alone_s = await seconds(layer, line, OTHERS)
    assert await seconds(layer, line, OTHERS, NAMED) < 1.4 * alone_s


@pytest.mark.parametrize("line", LINES)
async def test_one_that_fits_is_not_held_back(
    layer: Layer, line: tuple[float, float], autojump_clock: trio.testing.MockClock
):
    """Although a tenth of what is read is not in it, and the order is not quite that."""
    rng = random.Random(8)
    chunks: list[int] = []
    for start in range(0, len(NAMED), 10):
        chunks += [*rng.sample(NAMED[start : start + 10], 10), OTHERS[start // 10]]
    rtt_ms, mbit = line
    bound_s = 2 * rtt_ms / 1e3 + len(chunks) * CHUNK * 8 / mbit / 1e6
    misses_s = len(chunks) // 11 * 2 * rtt_ms / 1e3
    thinking_s = THINK_S * len(chunks)
    assert await seconds(layer, line, chunks, NAMED) < bound_s + misses_s + thinking_s


async def test_what_was_held_back_comes_when_readers_are_content(
    layer: Layer, autojump_clock: trio.testing.MockClock
):
    async with rigged() as rig:
        found, _ = await open_on_line(rig, layer, 5, 10)
        plan = planned(found, NAMED)
        progress = Progress()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch_planned, plan, {0: found.reader}, progress)
            for chunk in OTHERS:
                await found.expect(chunk * CHUNK, READ)
            assert progress.here_bytes < progress.wanted_bytes / 2
        assert progress.here_bytes == progress.wanted_bytes

"""What guesses gain and cost over lines of all kinds, in virtual time."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from lazyfs.errors import SourceUnavailableError
from lazyfs.layer.guess import INODE_BYTES, METADATA_BYTES, Guesser
from lazyfs.layer.likely import FILL_AHEAD, FREE_BYTES, WANTED_SHARE
from lazyfs.model import ByteRange
from lazyfs.profile.recording import Recording
from tests.support import layer_builder as build
from tests.support.layer_builder import Layer
from tests.support.layer_rig import Rig, noise, rigged
from tests.support.settled import wait_all_settled
from tests.support.simulated_line import open_on_line

pytestmark = pytest.mark.usefixtures("no_threads")

CHUNK = 128 << 10
COUNT = 192
READ = 20_480
"""Longer than what goes through the memory of pages."""

THINK_S = 0.004
"""What a program does between two reads."""


@pytest.fixture(scope="module")
def layer() -> Layer:
    return build.seekable(noise(COUNT * CHUNK), CHUNK)


def clusters() -> list[int]:
    """Chunks as a start reads them: near each other, in no order, then somewhere else."""
    rng = random.Random(5)
    wanted = []
    for start in (100, 20, 150, 60):
        near = rng.sample(range(start, start + 30), 22)
        wanted += near
    return wanted


@dataclass(frozen=True)
class Cost:
    """Of some reads."""

    seconds: float
    fetched_bytes: int
    chunk_bytes: int
    """Of it, what was no part of the hash tree."""
    requests: int
    guessed_bytes: int
    right_bytes: int


def with_guesser(rig: Rig) -> Guesser:
    engine = rig.engine
    engine.guesser = Guesser(rig.nursery, rig.store, rig.flights, engine.turns)
    return engine.guesser


async def cost(
    layer: Layer, line: tuple[float, float], chunks: Sequence[int], *, guessing: bool
) -> Cost:
    async with rigged() as rig:
        guesser = with_guesser(rig) if guessing else None
        found, blob = await open_on_line(rig, layer, *line)
        if guesser is not None:
            guesser.start()
        began = trio.current_time()
        for chunk in chunks:
            await found.reader.read_once(chunk * CHUNK, READ)
            await trio.sleep(THINK_S)
        seconds = trio.current_time() - began
        await wait_all_settled()
    counters = found.counters
    return Cost(
        seconds,
        blob.fetched_bytes,
        sum(asked.length for asked in blob.requests if asked.offset < layer.tree.offset),
        len(blob.requests),
        counters.guessed_bytes,
        counters.guessed_right_bytes,
    )


async def test_a_scattered_start_waits_less_on_a_long_line(
    layer: Layer, autojump_clock: trio.testing.MockClock
):
    without = await cost(layer, (50, 100), clusters(), guessing=False)
    guessing = await cost(layer, (50, 100), clusters(), guessing=True)
    assert guessing.seconds < 0.6 * without.seconds
    assert guessing.right_bytes > 0.5 * guessing.guessed_bytes
    assert guessing.fetched_bytes < 1.6 * without.fetched_bytes


@pytest.mark.parametrize("line", [(0.5, 10), (5, 10), (0.5, 1000), (1, 1000)])
async def test_where_a_guess_gains_nothing_there_is_none(
    layer: Layer, line: tuple[float, float], autojump_clock: trio.testing.MockClock
):
    without = await cost(layer, line, clusters(), guessing=False)
    guessing = await cost(layer, line, clusters(), guessing=True)
    assert guessing.guessed_bytes == 0
    # How much of the hash tree comes at once is left to chance: to who asks for it first.
    assert guessing.chunk_bytes == without.chunk_bytes
    assert guessing.fetched_bytes == pytest.approx(without.fetched_bytes, rel=0.01)
    assert guessing.seconds == pytest.approx(without.seconds, rel=0.01)


@pytest.mark.parametrize("line", [(50, 10), (5, 100), (50, 100), (50, 1000)])
async def test_random_reads_cost_little_more(
    layer: Layer, line: tuple[float, float], autojump_clock: trio.testing.MockClock
):
    chunks = random.Random(3).sample(range(0, COUNT, 6), 30)
    without = await cost(layer, line, chunks, guessing=False)
    guessing = await cost(layer, line, chunks, guessing=True)
    in_vain = guessing.guessed_bytes - guessing.right_bytes
    assert guessing.seconds <= 1.05 * without.seconds + in_vain * 8 / line[1] / 1e6
    allowed = FREE_BYTES + guessing.right_bytes + WANTED_SHARE * without.fetched_bytes
    assert in_vain <= allowed


async def test_nothing_is_guessed_before_it_is_time(
    layer: Layer, autojump_clock: trio.testing.MockClock
):
    async with rigged() as rig:
        guesser = with_guesser(rig)
        found, _ = await open_on_line(rig, layer, 50, 100)
        for chunk in (50, 53, 56):
            await found.reader.read_once(chunk * CHUNK, READ)
        await trio.sleep(1)
        assert found.counters.guessed_bytes == 0
        guesser.start()
        await trio.sleep(1)
        assert found.counters.guessed_bytes >= 4 * CHUNK
        guessed = found.key(54)
        assert rig.store.contains(guessed)


async def test_what_proves_a_guess_comes_along(
    layer: Layer, autojump_clock: trio.testing.MockClock
):
    async with rigged() as rig:
        with_guesser(rig).start()
        found, blob = await open_on_line(rig, layer, 50, 100)
        wanted = range(23, COUNT, 64)  # where hash blocks that are fetched together end
        for chunk in wanted:
            await found.reader.read_once(chunk * CHUNK, READ)
        await trio.sleep(1)
        blob.down = True
        guessed = [chunk + 1 for chunk in wanted]
        assert all(rig.store.contains(found.key(chunk)) for chunk in guessed)
        for chunk in guessed:
            await found.expect(chunk * CHUNK, CHUNK)


async def test_guesses_are_not_in_the_recording(
    layer: Layer, autojump_clock: trio.testing.MockClock
):
    async with rigged() as rig:
        with_guesser(rig).start()
        found, _ = await open_on_line(rig, layer, 50, 100)
        recording = Recording()
        found.counters.touched = recording.layer()
        await found.reader.read_once(50 * CHUNK, READ)
        await trio.sleep(1)
        await found.reader.read_once(54 * CHUNK, READ)
        await trio.sleep(1)
        assert found.counters.guessed_bytes
        blocks = {block for run in recording.runs() for block in range(run.first, run.end)}
        wanted = {(chunk * CHUNK + at) // 4096 for chunk in (50, 54) for at in range(0, READ, 4096)}
        assert blocks == wanted


async def test_what_cannot_be_had_is_guessed_once(
    layer: Layer, autojump_clock: trio.testing.MockClock
):
    async with rigged() as rig:
        with_guesser(rig).start()
        found, blob = await open_on_line(rig, layer, 50, 100)
        await found.reader.read_once(50 * CHUNK, READ)
        blob.down = True
        before = len(blob.requests)
        with pytest.raises(SourceUnavailableError):
            await found.reader.read_once(90 * CHUNK, READ)
        await trio.sleep(60)
        frames = {frame.offset for frame in layer.frames}
        asked = [where.offset for where in blob.requests[before:] if where.offset in frames]
        assert 1 < len(asked) < 10
        assert len(asked) == len(set(asked))


@pytest.mark.parametrize(
    ("inodes", "guessed"),
    [
        (12 * CHUNK // INODE_BYTES, True),
        (METADATA_BYTES * 2 // INODE_BYTES, False),
        (1 << 60, False),
    ],
)
async def test_metadata_is_guessed_unless_it_is_large(
    layer: Layer, inodes: int, guessed: bool, autojump_clock: trio.testing.MockClock
):
    async with rigged() as rig:
        with_guesser(rig).start()
        found, _ = await open_on_line(rig, layer, 50, 100)
        assert found.reader.guesses is not None
        found.reader.guesses.metadata(2 * CHUNK, inodes)
        await found.reader.read_once(10 * CHUNK, READ)
        await trio.sleep(1)
        there = [chunk for chunk in range(20) if rig.store.contains(found.key(chunk))]
        assert there == list(range(2, 14) if guessed else range(8, 13))


async def test_what_is_foreseen_fills_a_long_line_and_readers_pass_it(
    layer: Layer, autojump_clock: trio.testing.MockClock
):
    async with rigged() as rig:
        with_guesser(rig).start()
        found, blob = await open_on_line(rig, layer, 50, 100)
        guesses = found.reader.guesses
        assert guesses is not None
        guesses.foreseen(0, READ)  # nothing is known of the line yet
        await trio.sleep(1)
        line = rig.engine.turns.line
        assert line.is_long
        before = len(blob.requests)
        guesses.foreseen(10 * CHUNK, 40 * CHUNK)
        assert line.under_way < 0.2 * 100e6 / 8
        began = trio.current_time()
        await found.reader.read_once(48 * CHUNK, READ)
        waited = trio.current_time() - began
        assert waited < 0.35 < 40 * CHUNK * 8 / 100e6
        await trio.sleep(1)
        assert all(rig.store.contains(found.key(chunk)) for chunk in range(10, 50))
        frames = {frame.offset for frame in layer.frames}
        asked = [where.offset for where in blob.requests[before:] if where.offset in frames]
        assert len(asked) == len(set(asked))
        assert found.counters.guessed_bytes >= 40 * CHUNK


async def test_what_is_foreseen_comes_at_once_where_the_line_is_not_long(
    layer: Layer, autojump_clock: trio.testing.MockClock
):
    async with rigged() as rig:
        with_guesser(rig).start()
        found, _ = await open_on_line(rig, layer, 5, 100)
        await found.reader.read_once(0, READ)
        assert found.reader.guesses is not None
        found.reader.guesses.foreseen(10 * CHUNK, 40 * CHUNK)
        assert rig.engine.turns.line.under_way >= 40 * CHUNK


async def test_what_is_foreseen_does_not_wait_for_the_rest_of_an_image(
    layer: Layer, autojump_clock: trio.testing.MockClock
):
    async with rigged() as rig, trio.open_nursery() as nursery:
        with_guesser(rig).start()
        found, _ = await open_on_line(rig, layer, 50, 100)
        await found.reader.read_once(0, READ)
        nursery.start_soon(found.reader.have, [ByteRange(60 * CHUNK, 100 * CHUNK)])
        await wait_all_tasks_blocked()
        assert found.reader.guesses is not None
        before = rig.engine.turns.line.under_way
        found.reader.guesses.foreseen(10 * CHUNK, 40 * CHUNK)
        assert rig.engine.turns.line.under_way >= before + 40 * CHUNK


@pytest.mark.parametrize(
    ("line", "alone", "filled"),
    [((50, 100), True, True), ((50, 100), False, False), ((50, 10), True, False)],
)
async def test_a_part_that_is_wanted_as_a_whole_is_filled_up_on_a_long_line(
    layer: Layer,
    line: tuple[float, float],
    alone: bool,
    filled: bool,
    autojump_clock: trio.testing.MockClock,
):
    async with rigged() as rig:
        with_guesser(rig).start(alone=alone)
        found, _ = await open_on_line(rig, layer, *line)
        await found.reader.read_once(150 * CHUNK, READ)
        assert found.reader.guesses is not None
        found.reader.guesses.fill(20 * CHUNK, 30 * CHUNK)
        await trio.sleep(2)
        there = [chunk for chunk in range(20, 50) if rig.store.contains(found.key(chunk))]
        assert there == (list(range(20, 20 + FILL_AHEAD)) if filled else [])


@pytest.mark.parametrize("small", [True, False])
async def test_all_metadata_come_before_anybody_waits_if_they_are_small(
    layer: Layer, small: bool, autojump_clock: trio.testing.MockClock
):
    async with rigged() as rig:
        guesser = with_guesser(rig)
        guesser.start()
        found, _ = await open_on_line(rig, layer, 50, 100)
        assert found.reader.guesses is not None
        await found.reader.read_once(150 * CHUNK, READ)
        found.reader.guesses.metadata(2 * CHUNK, 4 * CHUNK // INODE_BYTES)
        if not small:  # together with those of another place
            found.reader.guesses.metadata(20 * CHUNK, (METADATA_BYTES - CHUNK) // INODE_BYTES)
        guesser.all_metadata()
        await trio.sleep(1)
        assert rig.store.contains(found.key(3)) is small

"""Fetching in the background: what a profile names, or all of some layers.

Reads go first: few portions are under way at a time, so that most requests are free for them.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from lazyfs.errors import LazyfsError
from lazyfs.layer.paged import PagedReader
from lazyfs.model import ByteRange
from lazyfs.profile.batches import Batch, Plan

STEP_BYTES = 8 << 20
"""Image bytes that are asked for together."""

SLOW_STEP_BYTES = 1 << 20
"""The same where the rate is limited."""

STEPS_AT_ONCE = 2
"""Few, so that reads find most requests free and most of the bandwidth theirs."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Background:
    """Work that nobody waits for: no failure of it is anybody's but the layer's.

    Not even a bug gets out of it, which would end the mount.
    """

    failed: set[PagedReader] = field(default_factory=set)
    """Layers that are left to those who read them."""

    async def have(self, reader: PagedReader, ranges: Sequence[ByteRange]) -> bool:
        """Have ranges of a layer in the store, unless the layer has failed; whether they are."""
        if reader in self.failed:
            return False
        try:
            await reader.have(ranges)
        except LazyfsError as error:
            self.failed.add(reader)
            log.warning("background fetch of a layer stops: %s", error)
        except Exception:
            self.failed.add(reader)
            log.exception("background fetch of a layer stops: internal error")
        else:
            return True
        return False


async def prefetch(readers: Sequence[PagedReader], bytes_per_s: float = 0) -> None:
    """Have all of some layers in the store; a layer that fails is left to those who read it.

    Args:
        readers: the layers.
        bytes_per_s: of blobs that may come, those for readers included; 0: as fast as they come.
    """
    work = Background()
    steps = _steps(readers, SLOW_STEP_BYTES if bytes_per_s else STEP_BYTES)

    async def some() -> None:
        for reader, where in steps:
            before = _fetched(readers)
            began_s = trio.current_time()
            await work.have(reader, [where])
            if bytes_per_s:
                await trio.sleep_until(began_s + (_fetched(readers) - before) / bytes_per_s)

    async with trio.open_nursery() as nursery:
        for _ in range(1 if bytes_per_s else STEPS_AT_ONCE):
            nursery.start_soon(some)


@dataclass(slots=True)
class Progress:
    """How far the fetching of a profile has come, in bytes of blobs."""

    wanted_bytes: int = 0
    here_bytes: int = 0
    failed_bytes: int = 0


async def fetch_planned(plan: Plan, readers: Mapping[int, PagedReader], progress: Progress) -> None:
    """Have chunks of some layers in the store, in portions, in their order.

    Args:
        plan: what to fetch.
        readers: the layers, by the numbers that the plan gives them.
        progress: is kept up to date.
    """
    work = Background()
    progress.wanted_bytes = plan.blob_bytes
    rest = plan.batches(lambda: min(reader.ranges_at_once for reader in readers.values()))

    async def some() -> None:
        for batch in rest:
            if await _have_batch(work, batch, readers):
                progress.here_bytes += batch.blob_bytes
            else:
                progress.failed_bytes += batch.blob_bytes

    async with trio.open_nursery() as nursery:
        for _ in range(STEPS_AT_ONCE):
            nursery.start_soon(some)


async def _have_batch(work: Background, batch: Batch, readers: Mapping[int, PagedReader]) -> bool:
    results: list[bool] = []

    async def have(layer: int, ranges: Sequence[ByteRange]) -> None:
        results.append(await work.have(readers[layer], ranges))

    async with trio.open_nursery() as nursery:
        for layer, ranges in batch.ranges.items():
            nursery.start_soon(have, layer, ranges)
    return all(results)


def _fetched(readers: Sequence[PagedReader]) -> int:
    return sum(reader.counters.fetched_bytes for reader in readers)


def _steps(
    readers: Sequence[PagedReader], step_bytes: int
) -> Iterator[tuple[PagedReader, ByteRange]]:
    for reader in readers:
        for offset in range(0, reader.size_bytes, step_bytes):
            yield reader, ByteRange(offset, min(step_bytes, reader.size_bytes - offset))

"""Fetching all of some layers in the background, so that it does not get in the way of reads."""

import logging
from collections.abc import Iterator, Sequence

import trio

from lazyfs.errors import LazyfsError
from lazyfs.layer.paged import PagedReader

STEP_BYTES = 8 << 20
"""Image bytes that are asked for together."""

STEPS_AT_ONCE = 2
"""Few, so that reads find most requests free and most of the bandwidth theirs."""

log = logging.getLogger(__name__)


async def prefetch(readers: Sequence[PagedReader]) -> None:
    """Have all of some layers in the store; a layer that fails is left to those who read it.

    Not even a bug gets out of it, which would end the mount.
    """
    failed: set[PagedReader] = set()
    steps = _steps(readers)

    async def some() -> None:
        for reader, offset in steps:
            if reader in failed:
                continue
            try:
                await reader.have(offset, min(STEP_BYTES, reader.size_bytes - offset))
            except LazyfsError as error:
                failed.add(reader)
                log.warning("background fetch of a layer stops: %s", error)
            except Exception:
                failed.add(reader)
                log.exception("background fetch of a layer stops: internal error")

    async with trio.open_nursery() as nursery:
        for _ in range(STEPS_AT_ONCE):
            nursery.start_soon(some)


def _steps(readers: Sequence[PagedReader]) -> Iterator[tuple[PagedReader, int]]:
    for reader in readers:
        for offset in range(0, reader.size_bytes, STEP_BYTES):
            yield reader, offset

"""Fetches chunks by few requests, in bounded memory, and hands each on as it comes."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing

import trio

from lazyfs.interfaces import BlobSource
from lazyfs.layer.budget import ByteBudget
from lazyfs.layer.piece import cut
from lazyfs.model import ByteRange
from lazyfs.seekable.chunktable import ChunkTable

RUN_BYTES = 8 << 20
"""Neighbouring chunks are fetched together up to about this many stored bytes."""

Take = Callable[[int, bytes], Awaitable[None]]


async def fetch_chunks(
    source: BlobSource,
    table: ChunkTable,
    wanted: Sequence[int],
    take: Take,
    *,
    requests: trio.CapacityLimiter,
    budget: ByteBudget,
) -> None:
    """Fetch chunks, about in their order.

    Args:
        source: the blob.
        table: says where they lie.
        wanted: their indexes, increasing.
        take: awaited with each chunk's index and stored bytes, for several chunks at a time.
        requests: bounds the requests under way.
        budget: bounds what is in memory: stored bytes and chunks until ``take`` is done.

    Raises:
        SourceUnavailableError: the blob cannot be read.
        Whatever ``take`` raises, in an exception group; the rest is given up.
    """
    runs = _runs(table, wanted)

    async def one(index: int, stored: bytes, held_bytes: int) -> None:
        try:
            await take(index, stored)
        finally:
            budget.give_back(held_bytes)

    async def fetch_runs() -> None:
        for run in runs:
            async with requests:
                await fetch_run(run)

    async def fetch_run(run: range) -> None:
        where = ByteRange(table.frame(run[0]).offset, 0)
        where = ByteRange(where.offset, table.frame(run[-1]).end - where.offset)
        lengths = [table.frame(index).length for index in run]
        async with source.stream(where) as pieces, aclosing(cut(pieces, lengths)) as frames:
            for index in run:
                held_bytes = await budget.take(
                    table.frame(index).length + table.chunk(index).length
                )
                try:
                    stored = await anext(frames)
                except BaseException:
                    budget.give_back(held_bytes)
                    raise
                nursery.start_soon(one, index, stored, held_bytes)

    async with trio.open_nursery() as nursery:
        for _ in range(int(requests.total_tokens)):
            nursery.start_soon(fetch_runs)


def _runs(table: ChunkTable, wanted: Sequence[int]) -> Iterator[range]:
    """Neighbours among the wanted chunks that one request is to bring."""
    first = 0
    for at in range(1, len(wanted) + 1):
        if (
            at == len(wanted)
            or wanted[at] != wanted[at - 1] + 1
            or table.frame(wanted[at]).end - table.frame(wanted[first]).offset > RUN_BYTES
        ):
            yield range(wanted[first], wanted[at - 1] + 1)
            first = at

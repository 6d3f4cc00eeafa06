"""Work on all of a file, piece by piece and side by side."""

from collections.abc import Callable

import trio

PIECE_BYTES = 4 << 20
"""A multiple of every block size."""


async def each_piece(
    size_bytes: int,
    work: Callable[[int, int], None],
    workers: trio.CapacityLimiter,
    on_progress: Callable[[int], None] | None = None,
) -> None:
    """Run ``work(offset, length)`` in threads for all pieces of ``size_bytes`` bytes.

    Args:
        size_bytes: of what is worked on.
        work: runs in a thread.
        workers: bounds the threads.
        on_progress: told of bytes done.

    Raises:
        Whatever ``work`` raises (in an exception group); the rest is given up.
    """
    offsets = iter(range(0, size_bytes, PIECE_BYTES))

    async def some() -> None:
        for offset in offsets:
            length = min(PIECE_BYTES, size_bytes - offset)
            await trio.to_thread.run_sync(work, offset, length, limiter=workers)
            if on_progress is not None:
                on_progress(length)

    async with trio.open_nursery() as nursery:
        for _ in range(int(workers.total_tokens)):
            nursery.start_soon(some)

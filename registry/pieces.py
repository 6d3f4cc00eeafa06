"""Streams of pieces of bytes, cut anew."""

from collections.abc import AsyncGenerator, AsyncIterable


async def regroup(pieces: AsyncIterable[bytes], size_bytes: int) -> AsyncGenerator[bytes, None]:
    """The same bytes in pieces of exactly ``size_bytes``, the last one shorter; none empty.

    Holds at most ``size_bytes`` and one incoming piece. Closes ``pieces`` when it ends.
    """
    iterator = aiter(pieces)
    held: list[bytes] = []
    held_bytes = 0
    try:
        async for piece in iterator:
            held.append(piece)
            held_bytes += len(piece)
            if held_bytes < size_bytes:
                continue
            joined = memoryview(held[0] if len(held) == 1 else b"".join(held))
            whole_bytes = held_bytes - held_bytes % size_bytes
            for start in range(0, whole_bytes, size_bytes):
                yield bytes(joined[start : start + size_bytes])
            held = [bytes(joined[whole_bytes:])]
            held_bytes -= whole_bytes
        if held_bytes:
            yield b"".join(held)
    finally:
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()

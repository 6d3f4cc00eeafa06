"""An async stream of bytes as the file object that synchronous decoders read from."""

from collections.abc import AsyncIterator, Callable

import trio


class BlockingStream:
    """Reads in a worker thread what arrives on the event loop; holds one piece at a time."""

    def __init__(self, pieces: AsyncIterator[bytes], see: Callable[[bytes], None]) -> None:
        """Read ``pieces``, showing each to ``see`` (in the worker thread) as it comes."""
        self._pieces = pieces
        self._see = see
        self._rest = memoryview(b"")

    def read(self, size_bytes: int) -> bytes:
        """At most ``size_bytes`` bytes; none at the end.

        Raises:
            Whatever the stream raises.
        """
        if not self._rest:
            piece = trio.from_thread.run(self._next)
            self._see(piece)
            self._rest = memoryview(piece)
        data = bytes(self._rest[:size_bytes])
        self._rest = self._rest[size_bytes:]
        return data

    async def _next(self) -> bytes:
        async for piece in self._pieces:
            if piece:
                return piece
        return b""

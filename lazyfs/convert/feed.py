"""An async stream of bytes as the file object that blocking decoders read from.

A task fills a bounded channel while a worker thread drains it, so that the network and the
decoder work side by side.
"""

from collections.abc import Callable

import trio

from registry.interfaces import BlobReader

PIECES_AHEAD = 8
"""Pieces that wait between network and decoder."""

See = Callable[[bytes], None]


async def pump(blob: BlobReader, send: trio.MemorySendChannel[bytes]) -> None:
    """Send a whole blob, then close the channel.

    After an error the channel stays open: the reader must not take the failure for the end.

    Raises:
        RegistryError: the blob cannot be read.
    """
    async with blob.stream(0, blob.size_bytes) as pieces:
        async for piece in pieces:
            await send.send(piece)
    send.close()


class Feed:
    """The other end, for one worker thread that trio started."""

    def __init__(self, receive: trio.MemoryReceiveChannel[bytes], see: See) -> None:
        """Read what comes, showing each piece to ``see`` (in the worker thread)."""
        self._receive = receive
        self._see = see
        self._rest = memoryview(b"")
        self._ended = False

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none at the end.

        Raises:
            trio.Cancelled: the conversion was given up.
        """
        while not self._rest and not self._ended:
            try:
                piece = trio.from_thread.run(self._receive.receive)
            except trio.EndOfChannel:
                self._ended = True
                break
            self._see(piece)
            self._rest = memoryview(piece)
        data = bytes(self._rest[:size])
        self._rest = self._rest[size:]
        return data

    def drain(self) -> None:
        """Read on to the end."""
        while self.read(1 << 20):
            pass

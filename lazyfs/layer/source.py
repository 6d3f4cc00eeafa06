"""Blobs as ``BlobSource``: the one place where registry errors become errors of lazyfs."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import trio

from lazyfs.errors import SourceUnavailableError
from lazyfs.layer.counters import LayerCounters
from lazyfs.model import ByteRange
from registry.errors import RegistryError
from registry.interfaces import BlobReader


class RegistrySource:
    """A blob of a registry, an OCI layout folder or an archive."""

    def __init__(self, blob: BlobReader, counters: LayerCounters) -> None:
        """Adapt ``blob``, counting what is asked of it."""
        self._blob = blob
        self._counters = counters

    @property
    def size_bytes(self) -> int:
        """Length of the blob."""
        return self._blob.size_bytes

    @property
    def origin(self) -> str:
        """Host or path."""
        return self._blob.origin

    @property
    def ranges_at_once(self) -> int:
        """As ``BlobSource.ranges_at_once``."""
        return self._blob.ranges_at_once

    async def fetch(self, where: ByteRange) -> bytes:
        """Return exactly ``where.length`` UNVERIFIED bytes.

        Raises:
            SourceUnavailableError: no answer, a wrong one, or a short one.
        """
        async with self.stream(where) as pieces:
            return b"".join([piece async for piece in pieces])

    def distrust(self, where: ByteRange) -> str:
        """Report wrong bytes; return who gave them."""
        return self._blob.distrust(where.offset, where.length)

    @asynccontextmanager
    async def stream(self, *ranges: ByteRange) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open ranges, one or more, as a stream of UNVERIFIED pieces.

        Raises:
            SourceUnavailableError: on opening or while reading.
        """
        self._counters.requests += 1
        began_s = trio.current_time()
        try:
            async with (
                self._blob.stream(*ranges[0], *ranges[1:]) as pieces,
                aclosing(self._counted(pieces, began_s)) as counted,
            ):
                yield counted
        except (RegistryError, OSError) as error:
            raise SourceUnavailableError(f"{self._blob.origin}: {error}") from error

    async def _counted(
        self, pieces: AsyncIterator[bytes], began_s: float
    ) -> AsyncGenerator[bytes, None]:
        counters = self._counters
        first = True
        async for piece in pieces:
            if first:
                counters.first_byte_s.observe(trio.current_time() - began_s)
                first = False
            counters.fetched_bytes += len(piece)
            yield piece
        counters.whole_s.observe(trio.current_time() - began_s)

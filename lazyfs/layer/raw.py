"""A raw EROFS blob read by ranges, without any proof (``--verify=off`` only)."""

from lazyfs.errors import SourceUnavailableError
from lazyfs.interfaces import BlobSource
from lazyfs.layer.counters import LayerCounters
from lazyfs.layer.paged import PagedReader
from lazyfs.layer.pages import PageMemory
from lazyfs.model import ByteRange


class RawLayer(PagedReader):
    """The blob is the image. Nothing is stored: nothing could tell a rotten block later."""

    def __init__(
        self, number: int, source: BlobSource, pages: PageMemory, counters: LayerCounters
    ) -> None:
        """Read ``source``."""
        super().__init__(number, source.size_bytes, pages, counters)
        self._source = source

    async def read_proven(self, offset: int, length: int) -> bytes:
        """Bytes of the blob, as they come.

        Raises:
            SourceUnavailableError: they do not.
        """
        try:
            return await self._source.fetch(ByteRange(offset, length))
        except SourceUnavailableError as error:
            self.counters.failed(error)
            raise

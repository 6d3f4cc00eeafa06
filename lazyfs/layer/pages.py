"""A bounded memory of proven bytes, for what is read again and again: metadata.

The kernel's page cache serves file data, and the store on disk serves chunks; but parsing
inodes and directories asks for a few bytes many times, which must not cost a disk read and
a hash each. One ``PageMemory`` serves all layers of a mount, so its limit is the mount's.
"""

from collections import OrderedDict

PAGE_BYTES = 16 << 10
"""Unit of the memory: four 4 KiB blocks, so that neighbours in metadata come along."""

DEFAULT_LIMIT_BYTES = 12 << 20


class PageMemory:
    """The most recently used proven pages, up to a limit in bytes."""

    def __init__(self, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        """Keep at most ``limit_bytes``."""
        self._limit_bytes = limit_bytes
        self._used_bytes = 0
        self._pages: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    def get(self, layer: int, page: int) -> bytes | None:
        """The bytes of page ``page`` of a layer, if they are remembered."""
        key = (layer, page)
        data = self._pages.get(key)
        if data is not None:
            self._pages.move_to_end(key)
        return data

    def put(self, layer: int, page: int, data: bytes) -> None:
        """Remember proven bytes, forgetting the least recently used ones."""
        old = self._pages.pop((layer, page), None)
        if old is not None:
            self._used_bytes -= len(old)
        self._pages[layer, page] = data
        self._used_bytes += len(data)
        while self._used_bytes > self._limit_bytes:
            _, dropped = self._pages.popitem(last=False)
            self._used_bytes -= len(dropped)

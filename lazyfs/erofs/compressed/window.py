"""Index bytes by aligned windows, a few of which are kept."""

from collections.abc import Callable
from typing import TypeAlias

from lazyfs.erofs import limits
from lazyfs.erofs.inode import Inode
from lazyfs.erofs.superblock import Superblock
from lazyfs.errors import ImageFormatError
from lazyfs.steps import Steps

ReadWindow: TypeAlias = Callable[[bool, int], Steps[bytes]]
"""(in the metabox, aligned address) → the window there; short at the metabox's end."""


def window_bytes(superblock: Superblock) -> int:
    """Size of a window: at most one block, so that it never passes the end of an image."""
    return min(superblock.block_bytes, limits.METADATA_WINDOW_BYTES)


class Windows:
    """The metadata behind one inode."""

    def __init__(self, superblock: Superblock, inode: Inode, read: ReadWindow) -> None:
        """Begin with nothing."""
        self._nid = inode.nid
        self._in_metabox = inode.in_metabox
        self._read = read
        self._size = window_bytes(superblock)
        self._kept: dict[int, bytes] = {}

    def at(self, address: int) -> Steps[tuple[bytes, int]]:
        """The window that holds ``address``, and where in it that is."""
        offset = address % self._size
        start = address - offset
        data = self._kept.get(start)
        if data is None:
            data = yield from self._read(self._in_metabox, start)
            if len(self._kept) >= limits.MAX_KEPT_WINDOWS:
                self._kept.pop(next(iter(self._kept)), None)
            self._kept[start] = data
        return data, offset

    def read(self, address: int, length: int) -> Steps[bytes]:
        """Exactly ``length`` bytes that do not cross a window's edge.

        Raises:
            ImageFormatError: they are not there.
        """
        data, offset = yield from self.at(address)
        if offset + length > len(data):
            raise ImageFormatError(f"nid {self._nid:#x}: index of {length} bytes at {address}")
        return data[offset : offset + length]

"""An image that shows the files of others: overlayfs's metacopy and redirect.

Such a file has its attributes in this image and its data in one of some images beside it, under
the path that an extended attribute names. Those images show nothing of themselves: overlayfs
calls them data-only lower layers (Documentation/filesystems/overlayfs.rst), the EROFS image
specification ``overlay-data`` (section 2.4).
"""

import stat
from collections import OrderedDict
from collections.abc import Sequence

from cache.memo import Memo
from lazyfs.errors import ImageFormatError, NoSuchEntryError, NotADirectoryNodeError
from lazyfs.image.erofs_layer import ErofsLayer, InodeMemory
from lazyfs.interfaces import VerifiedReader
from lazyfs.model import Nid

METACOPY_XATTR = b"trusted.overlay.metacopy"
REDIRECT_XATTR = b"trusted.overlay.redirect"

MAX_DEPTH = 2048
"""Directories on a redirect: a path of 4096 bytes has no more."""

MAX_KNOWN = 8192
"""Files whose data were found and are remembered."""


class RedirectingLayer(ErofsLayer):
    """An ``ErofsLayer`` whose files may have their data in other images."""

    def __init__(
        self,
        number: int,
        devices: Sequence[VerifiedReader],
        derived: Memo,
        inodes: InodeMemory,
        data: Sequence[ErofsLayer],
    ) -> None:
        """As ``ErofsLayer``; ``data`` are opened images, the one to look in first first."""
        super().__init__(number, devices, derived, inodes)
        self._data = data
        self._known: OrderedDict[Nid, tuple[ErofsLayer, Nid] | None] = OrderedDict()

    async def read(self, nid: Nid, offset: int, length: int) -> bytes:
        """File data, from wherever it is.

        Raises:
            ImageFormatError: it is nowhere.
        """
        layer, data_nid = await self.data_of(nid)
        if layer is self:
            return await super().read(nid, offset, length)
        size = (await self.inode(nid)).size_bytes
        return await layer.read(data_nid, offset, max(0, min(length, size - offset)))

    async def data_of(self, nid: Nid) -> tuple[ErofsLayer, Nid]:
        """See ``ErofsLayer.data_of``.

        Raises:
            ImageFormatError: they are nowhere.
        """
        if nid in self._known:
            self._known.move_to_end(nid)
        else:
            self._known[nid] = await self._find(nid)
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        return self._known[nid] or (self, nid)

    async def _find(self, nid: Nid) -> tuple[ErofsLayer, Nid] | None:
        """Where the data of a file lies; None: here."""
        xattrs = await self.xattrs(nid)
        if METACOPY_XATTR not in xattrs:
            return None
        path = xattrs.get(REDIRECT_XATTR, b"")
        components = [part for part in path.split(b"/") if part]
        if not path.startswith(b"/") or not components or len(components) > MAX_DEPTH:
            raise ImageFormatError(f"nid {nid:#x}: data elsewhere, but at {path[:80]!r}")
        for layer in self._data:
            found = await _walk(layer, components)
            if found is not None:
                return layer, found
        raise ImageFormatError(f"nid {nid:#x}: no data image has {path[:80]!r}")


async def _walk(layer: ErofsLayer, components: Sequence[bytes]) -> Nid | None:
    """The regular file at a path; symbolic links are not followed, as in overlayfs."""
    nid = layer.image.root_nid
    for name in components:
        try:
            nid = (await layer.lookup(nid, name)).nid
        except (NoSuchEntryError, NotADirectoryNodeError):
            return None
    return nid if stat.S_ISREG((await layer.inode(nid)).mode) else None

"""One EROFS image as a tree, shown as it is: whiteouts are devices, all attributes show."""

from collections.abc import Mapping, Sequence

from lazyfs.errors import NoSuchEntryError
from lazyfs.image.erofs_layer import ErofsLayer
from lazyfs.image.nodes import nid_of, node_in
from lazyfs.model import ROOT_NODE, Attributes, DirectoryEntry, Nid, NodeId


class SingleTree:
    """An ``ImageTree`` over one image."""

    grows = False

    def __init__(self, layer: ErofsLayer) -> None:
        """Serve an opened ``layer``."""
        self._layer = layer

    async def lookup(self, parent: NodeId, name: bytes) -> NodeId:
        """The object that ``name`` means in a directory.

        Raises:
            NoSuchEntryError, NotADirectoryNodeError.
        """
        entry = await self._layer.lookup(self._nid(parent), name)
        if name in (b".", b".."):
            raise NoSuchEntryError(name)
        return self._node(entry.nid)

    async def parent(self, directory: NodeId) -> NodeId:
        """The directory that a directory is in; the root is in itself.

        Raises:
            NotADirectoryNodeError.
        """
        if directory == ROOT_NODE:
            return ROOT_NODE
        return self._node(await self._layer.parent(self._nid(directory)))

    async def attributes(self, node: NodeId) -> Attributes:
        """What ``stat`` shows."""
        return (await self._layer.inode(self._nid(node))).attributes()

    async def entries(self, directory: NodeId, start: int) -> Sequence[DirectoryEntry]:
        """Some entries from position ``start``; none at the end.

        Raises:
            NotADirectoryNodeError.
        """
        root = self._layer.image.root_nid
        return [
            DirectoryEntry(name, ROOT_NODE if nid == root else node_in(0, nid), file_type, position)
            for name, nid, file_type, position in await self._layer.entries(
                self._nid(directory), start
            )
        ]

    async def listed_directory(self, directory: NodeId, entry: DirectoryEntry) -> Attributes | None:
        """See ``ImageTree.listed_directory``."""
        return self._layer.subdirectory_nowait(self._nid(directory), self._nid(entry.node))

    async def read(self, node: NodeId, offset: int, length: int) -> bytes:
        """File data; short only at the end of the file.

        Raises:
            NotAFileNodeError.
        """
        return await self._layer.read(self._nid(node), offset, length)

    async def link_target(self, node: NodeId) -> bytes:
        """Target of a symbolic link.

        Raises:
            NotASymlinkNodeError.
        """
        return await self._layer.link_target(self._nid(node))

    async def xattrs(self, node: NodeId) -> Mapping[bytes, bytes]:
        """All extended attributes."""
        return await self._layer.xattrs(self._nid(node))

    def _nid(self, node: NodeId) -> Nid:
        return self._layer.image.root_nid if node == ROOT_NODE else nid_of(node)

    def _node(self, nid: Nid) -> NodeId:
        return ROOT_NODE if nid == self._layer.image.root_nid else node_in(0, nid)

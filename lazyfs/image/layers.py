"""The layers of an image side by side, each in a directory of its own.

This is what overlayfs wants for lower directories: every layer as the kernel's EROFS would show
it, with its whiteouts, its opaque marks and all its attributes, and all of them in one file
system, so that inode numbers are unique among them.
"""

import stat
from collections.abc import Mapping, Sequence

from lazyfs.errors import NoSuchEntryError, NotAFileNodeError, NotASymlinkNodeError
from lazyfs.image.erofs_layer import ErofsLayer
from lazyfs.image.nodes import Place, node_of, place_of
from lazyfs.model import ROOT_NODE, Attributes, DirectoryEntry, NodeId

ROOT_MODE = stat.S_IFDIR | 0o555


class LayersTree:
    """An ``ImageTree`` whose root has a directory for each layer: ``0`` is the bottom one."""

    grows = False

    def __init__(self, layers: Sequence[ErofsLayer]) -> None:
        """Serve opened ``layers``, bottom layer first."""
        self._layers = layers
        self._roots = {
            b"%d" % number: node_of(Place(number, layer.image.root_nid))
            for number, layer in enumerate(layers)
        }
        self._root_nodes = frozenset(self._roots.values())

    async def lookup(self, parent: NodeId, name: bytes) -> NodeId:
        """The object that ``name`` means in a directory.

        Raises:
            NoSuchEntryError, NotADirectoryNodeError.
        """
        if parent == ROOT_NODE:
            if name not in self._roots:
                raise NoSuchEntryError(name)
            return self._roots[name]
        layer, place = self._place(parent)
        entry = await layer.lookup(place.nid, name)
        if name in (b".", b".."):
            raise NoSuchEntryError(name)
        return node_of(Place(place.layer, entry.nid))

    async def parent(self, directory: NodeId) -> NodeId:
        """The directory that a directory is in.

        Raises:
            NotADirectoryNodeError.
        """
        if directory == ROOT_NODE or directory in self._root_nodes:
            return ROOT_NODE
        layer, place = self._place(directory)
        return node_of(Place(place.layer, await layer.parent(place.nid)))

    async def attributes(self, node: NodeId) -> Attributes:
        """What ``stat`` shows; the root has the time of the topmost layer's."""
        if node != ROOT_NODE:
            layer, place = self._place(node)
            return (await layer.inode(place.nid)).attributes()
        top = self._layers[-1]
        newest = (await top.inode(top.image.root_nid)).attributes()
        return Attributes(
            mode=ROOT_MODE,
            uid=0,
            gid=0,
            nlink=2 + len(self._layers),
            size_bytes=0,
            mtime_s=newest.mtime_s,
            mtime_ns=newest.mtime_ns,
            rdev_major=0,
            rdev_minor=0,
            blocks_512=0,
        )

    async def entries(self, directory: NodeId, start: int) -> Sequence[DirectoryEntry]:
        """Some entries from position ``start``; none at the end.

        Raises:
            NotADirectoryNodeError.
        """
        if directory == ROOT_NODE:
            return [
                DirectoryEntry(name, node, stat.S_IFDIR, position)
                for position, (name, node) in enumerate(self._roots.items(), 1)
            ][start:]
        layer, place = self._place(directory)
        return [
            DirectoryEntry(
                entry.name,
                node_of(Place(place.layer, entry.nid)),
                entry.file_type,
                entry.next_position,
            )
            for entry in await layer.entries(place.nid, start)
        ]

    async def listed_directory(self, directory: NodeId, entry: DirectoryEntry) -> Attributes | None:
        """See ``ImageTree.listed_directory``."""
        if directory == ROOT_NODE:
            return None
        layer, place = self._place(directory)
        return layer.subdirectory_nowait(place.nid, place_of(entry.node).nid)

    async def read(self, node: NodeId, offset: int, length: int) -> bytes:
        """File data; short only at the end of the file.

        Raises:
            NotAFileNodeError.
        """
        if node == ROOT_NODE:
            raise NotAFileNodeError("the root is a directory")
        layer, place = self._place(node)
        return await layer.read(place.nid, offset, length)

    async def link_target(self, node: NodeId) -> bytes:
        """Target of a symbolic link.

        Raises:
            NotASymlinkNodeError.
        """
        if node == ROOT_NODE:
            raise NotASymlinkNodeError("the root is a directory")
        layer, place = self._place(node)
        return await layer.link_target(place.nid)

    async def xattrs(self, node: NodeId) -> Mapping[bytes, bytes]:
        """All extended attributes, those of the overlay among them."""
        if node == ROOT_NODE:
            return {}
        layer, place = self._place(node)
        return await layer.xattrs(place.nid)

    def _place(self, node: NodeId) -> tuple[ErofsLayer, Place]:
        """The layer of a node that is not the root, and where it is in there.

        Raises:
            NoSuchEntryError: a number that was never handed out.
        """
        place = place_of(node)
        if place.layer >= len(self._layers):
            raise NoSuchEntryError(f"node {node} is in no layer")
        return self._layers[place.layer], place

"""A tree of folders and layer files that may grow, for FUSE.

Node ids are computed from paths, so a daemon that takes over understands what the kernel
remembers, and nothing about numbers has to be kept. What is not there may come: names that are
missing are not remembered, and ``look_again`` is asked for news first.
"""

import hashlib
import stat
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lazyfs.errors import (
    NoSuchEntryError,
    NotADirectoryNodeError,
    NotAFileNodeError,
    NotASymlinkNodeError,
    NotYetThereError,
    SourceUnavailableError,
)
from lazyfs.interfaces import LayerReader
from lazyfs.model import ROOT_NODE, Attributes, DirectoryEntry, NodeId

FOLDER_MODE = stat.S_IFDIR | 0o555
FILE_MODE = stat.S_IFREG | 0o444

FIRST_NODE = 1 << 32
"""Computed ids lie above all that FUSE gives a meaning of its own."""

Path = tuple[bytes, ...]


class File(Protocol):
    """What a file has to offer."""

    @property
    def reader(self) -> LayerReader | None:
        """Its bytes, if it is open."""
        ...

    async def opened(self) -> LayerReader:
        """Its bytes; it is opened if need be.

        Raises:
            LazyfsError: it cannot be.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Folder:
    names: dict[bytes, NodeId] = field(default_factory=dict)
    """In the order in which they came, which is the order of a listing."""


async def _nothing_new() -> None:
    """For a tree that does not grow."""


class FileTree:
    """An ``ImageTree`` of layer files."""

    def __init__(self, look_again: Callable[[], Awaitable[None]] = _nothing_new) -> None:
        """Begin empty; ``look_again`` may add files when one is missed."""
        self._root = _Folder()
        self._nodes: dict[NodeId, _Folder | File] = {ROOT_NODE: self._root}
        self._look_again = look_again
        self.grows = look_again is not _nothing_new

    def add(self, path: Path, file: File) -> bool:
        """Put a file at ``path``; False if there is one, which stays.

        Raises:
            SourceUnavailableError: its number is taken, or a file stands in its way.
        """
        folder = self._root
        for depth in range(1, len(path)):
            known = folder.names.get(path[depth - 1])
            below = _Folder() if known is None else self._nodes[known]
            if not isinstance(below, _Folder):
                raise SourceUnavailableError(f"a file stands in the way of {path}")
            if known is None:
                self._put(folder, path[:depth], below)
            folder = below
        if path[-1] in folder.names:
            return False
        self._put(folder, path, file)
        return True

    def _put(self, folder: _Folder, path: Path, node: _Folder | File) -> None:
        number = node_of(path)
        if number in self._nodes:
            raise SourceUnavailableError(f"the number of {path} is taken")
        self._nodes[number] = node
        folder.names[path[-1]] = number

    async def lookup(self, parent: NodeId, name: bytes) -> NodeId:
        """The object that ``name`` means in a folder.

        Raises:
            NotYetThereError, NotADirectoryNodeError.
        """
        found = (await self._folder(parent)).names.get(name)
        if found is None:
            await self._look_again()
            found = (await self._folder(parent)).names.get(name)
        if found is None:
            raise NotYetThereError(name)
        return found

    async def parent(self, directory: NodeId) -> NodeId:
        """Nobody keeps handles of files in here.

        Raises:
            NoSuchEntryError: but for the root.
        """
        if directory != ROOT_NODE:
            raise NoSuchEntryError(f"node {directory} by a file handle")
        return ROOT_NODE

    async def attributes(self, node: NodeId) -> Attributes:
        """What ``stat`` shows; a layer must be opened for that, once."""
        found = await self._node(node)
        if isinstance(found, _Folder):
            return _attributes(FOLDER_MODE, 0)
        return _attributes(FILE_MODE, (await found.opened()).size_bytes)

    async def listed_directory(self, directory: NodeId, entry: DirectoryEntry) -> Attributes | None:
        """What ``stat`` shows of a folder."""
        found = self._nodes.get(entry.node)
        return _attributes(FOLDER_MODE, 0) if isinstance(found, _Folder) else None

    async def entries(self, directory: NodeId, start: int) -> Sequence[DirectoryEntry]:
        """All entries from position ``start``; none at the end.

        Raises:
            NotADirectoryNodeError.
        """
        if start == 0:
            await self._look_again()
        names = list((await self._folder(directory)).names.items())[start:]
        return [
            DirectoryEntry(name, node, self._kind(node), position)
            for position, (name, node) in enumerate(names, start + 1)
        ]

    async def read(self, node: NodeId, offset: int, length: int) -> bytes:
        """Proven bytes of a layer; short only at its end.

        Raises:
            NotAFileNodeError.
        """
        file = self._nodes.get(node) or await self._node(node)
        if isinstance(file, _Folder):
            raise NotAFileNodeError(f"node {node} is a folder")
        reader = file.reader or await file.opened()
        return await reader.read_once(offset, max(0, min(length, reader.size_bytes - offset)))

    async def link_target(self, node: NodeId) -> bytes:
        """There are no symbolic links."""
        raise NotASymlinkNodeError(f"node {node} is no symbolic link")

    async def xattrs(self, node: NodeId) -> Mapping[bytes, bytes]:
        """There are none."""
        return {}

    def _kind(self, node: NodeId) -> int:
        return stat.S_IFDIR if isinstance(self._nodes[node], _Folder) else stat.S_IFREG

    async def _node(self, node: NodeId) -> _Folder | File:
        """What a number means; the kernel may know it from a daemon before us."""
        if node not in self._nodes:
            await self._look_again()
        try:
            return self._nodes[node]
        except KeyError:
            raise SourceUnavailableError(f"node {node} is of a layer not known any more") from None

    async def _folder(self, node: NodeId) -> _Folder:
        found = await self._node(node)
        if isinstance(found, _Folder):
            return found
        raise NotADirectoryNodeError(f"node {node} is a file")


def node_of(path: Path) -> NodeId:
    """The number of a path that is not the root's."""
    digest = hashlib.sha256(b"/".join(path)).digest()
    number = int.from_bytes(digest[:8], "big") >> 1
    return NodeId(number if number >= FIRST_NODE else number + FIRST_NODE)


def _attributes(mode: int, size_bytes: int) -> Attributes:
    return Attributes(
        mode=mode,
        uid=0,
        gid=0,
        nlink=1 if stat.S_ISREG(mode) else 2,
        size_bytes=size_bytes,
        mtime_s=0,
        mtime_ns=0,
        rdev_major=0,
        rdev_minor=0,
        blocks_512=-(-size_bytes // 512),
    )

"""The layers of an image as one tree, with the rules of ``lazyfs.overlay``.

A file is where its topmost layer has it, so its node id says all. A directory is a stack of
directories, one per layer that has it, and its node id names the topmost. The stacks of
directories that were looked at are remembered up to a limit; a forgotten one is found again
by climbing ``..`` in its layer and walking down from the root. So memory grows with what is
touched only, and a node id stays good over a restart of the daemon.
"""

import stat
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import trio

from lazyfs.erofs.image import Entry
from lazyfs.errors import ImageFormatError, LazyfsError, NoSuchEntryError
from lazyfs.image.erofs_layer import ErofsLayer
from lazyfs.image.nodes import Place, node_in, node_of, place_of
from lazyfs.model import END_POSITION, ROOT_NODE, Attributes, DirectoryEntry, Nid, NodeId
from lazyfs.overlay import MERGED_NLINK, is_opaque, is_whiteout, visible_xattrs

MAX_STACKS = 1 << 14
"""Directories whose stack is remembered."""

MAX_LISTED = 1 << 14
"""Entries of merged listings that are remembered (the newest listing always is)."""

MAX_MERGED_ENTRIES = 1 << 19
"""Entries of one merged directory; such a listing must be held in memory (about 200 bytes each)."""

MAX_DEPTH = 2048
"""Directories on a path: a path of 4096 bytes has no more."""

BATCH = 256
"""Entries of a merged listing that are handed out at once."""

_WHITEOUT_TYPES = (stat.S_IFCHR, 0)
"""What an entry must say for its object to be a whiteout; 0: it does not say."""

Stack: TypeAlias = tuple[Place, ...]
"""The directories that make a merged one, topmost first."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """A directory met in a listing, whose stack nobody has needed yet."""

    parent: NodeId
    name: bytes


class MergedTree:
    """An ``ImageTree`` over a stack of layers."""

    grows = False

    def __init__(self, layers: Sequence[ErofsLayer]) -> None:
        """Serve opened ``layers``, bottom layer first."""
        self._layers = layers
        self._stacks: OrderedDict[NodeId, Stack | _Seen] = OrderedDict()
        self._listings: OrderedDict[NodeId, list[DirectoryEntry]] = OrderedDict()
        self._listed = 0
        places = [Place(number, layer.image.root_nid) for number, layer in enumerate(layers)]
        self._root: Stack = tuple(reversed(places))

    async def lookup(self, parent: NodeId, name: bytes) -> NodeId:
        """The object that ``name`` means in a directory.

        Raises:
            NoSuchEntryError, NotADirectoryNodeError.
        """
        if name in (b".", b".."):
            raise NoSuchEntryError(name)
        found = await self._child(await self._stack(parent), name)
        if found is None:
            raise NoSuchEntryError(name)
        place, stack = found
        node = node_of(place)
        if stack:
            self._remember(node, stack)
        return node

    async def parent(self, directory: NodeId) -> NodeId:
        """The directory that a directory is in; the root is in itself.

        Raises:
            NotADirectoryNodeError.
        """
        if directory == ROOT_NODE:
            return ROOT_NODE
        await self._stack(directory)  # or it is none
        return (await self._above(directory))[0]

    async def attributes(self, node: NodeId) -> Attributes:
        """What ``stat`` shows."""
        place = self._place(node)
        attributes = (await self._layers[place.layer].inode(place.nid)).attributes()
        if stat.S_ISDIR(attributes.mode) and len(await self._stack(node)) > 1:
            return attributes._replace(nlink=MERGED_NLINK)
        return attributes

    async def entries(self, directory: NodeId, start: int) -> Sequence[DirectoryEntry]:
        """Some entries from position ``start``; none at the end.

        Raises:
            NotADirectoryNodeError.
        """
        stack = await self._stack(directory)
        if len(stack) == 1:
            return await self._plain_entries(stack[0], start)
        listing = self._listings.get(directory)
        if listing is None:
            listing = await self._list(directory, stack)
            self._remember_listing(directory, listing)
        else:
            self._listings.move_to_end(directory)
        return listing[start : start + BATCH]

    async def listed_directory(self, directory: NodeId, entry: DirectoryEntry) -> Attributes | None:
        """See ``ImageTree.listed_directory``."""
        stack = self._stacks.get(directory)
        if isinstance(stack, tuple) and len(stack) == 1:
            layer = self._layers[stack[0].layer]
            return layer.subdirectory_nowait(stack[0].nid, place_of(entry.node).nid)
        found: Attributes | None = None
        with trio.CancelScope() as at_hand:
            at_hand.cancel()  # so that nothing is fetched
            try:
                if await self.lookup(directory, entry.name) == entry.node:
                    found = await self.attributes(entry.node)
            except LazyfsError:
                return None
        return found

    async def read(self, node: NodeId, offset: int, length: int) -> bytes:
        """File data; short only at the end of the file.

        Raises:
            NotAFileNodeError.
        """
        place = self._place(node)
        return await self._layers[place.layer].read(place.nid, offset, length)

    async def link_target(self, node: NodeId) -> bytes:
        """Target of a symbolic link.

        Raises:
            NotASymlinkNodeError.
        """
        place = self._place(node)
        return await self._layers[place.layer].link_target(place.nid)

    async def xattrs(self, node: NodeId) -> Mapping[bytes, bytes]:
        """The extended attributes that are not the overlay's own."""
        place = self._place(node)
        return visible_xattrs(await self._layers[place.layer].xattrs(place.nid))

    def _place(self, node: NodeId) -> Place:
        """Where the object, or the topmost part of a directory, lies."""
        if node == ROOT_NODE:
            return self._root[0]
        place = place_of(node)
        if place.layer >= len(self._layers):
            raise ImageFormatError(f"node {node} is in layer {place.layer}, which does not exist")
        return place

    async def _stack(self, node: NodeId) -> Stack:
        """The parts of a directory, topmost first.

        Raises:
            NotADirectoryNodeError.
        """
        if node == ROOT_NODE:
            return self._root
        stack = self._stacks.get(node)
        if not isinstance(stack, tuple):
            return await self._find(node)
        self._stacks.move_to_end(node)
        return stack

    async def _child(self, stack: Stack, name: bytes) -> tuple[Place, Stack] | None:
        """Where a name in a directory leads, with the stack of what is there if a directory."""
        for level, place in enumerate(stack):
            entry = await self._entry(place, name)
            if entry is None:
                continue
            found = Place(place.layer, entry.nid)
            if await self._is_whiteout(found, entry):
                return None
            if entry.file_type != stat.S_IFDIR:
                return found, ()
            return found, await self._merge(found, stack[level + 1 :], name)
        return None

    async def _merge(self, found: Place, below: Sequence[Place], name: bytes) -> Stack:
        """The stack of a directory whose parent goes on with ``below`` in lower layers."""
        parts = [found]
        for place in below:
            if await self._is_opaque(parts[-1]):
                break
            entry = await self._entry(place, name)
            if entry is None:
                continue
            if entry.file_type != stat.S_IFDIR:
                break  # a whiteout or a file: what lies below it is hidden
            parts.append(Place(place.layer, entry.nid))
        return tuple(parts)

    async def _entry(self, directory: Place, name: bytes) -> Entry | None:
        try:
            return await self._layers[directory.layer].lookup(directory.nid, name)
        except NoSuchEntryError:
            return None

    async def _is_whiteout(self, place: Place, entry: Entry) -> bool:
        if entry.file_type not in _WHITEOUT_TYPES:
            return False
        attributes = (await self._layers[place.layer].inode(place.nid)).attributes()
        return is_whiteout(attributes.mode, attributes.rdev_major, attributes.rdev_minor)

    async def _is_listed_whiteout(self, place: Place, entry: Entry) -> bool:
        """As ``_is_whiteout``; a broken inode is shown, for others must not suffer."""
        try:
            return await self._is_whiteout(place, entry)
        except ImageFormatError:
            return False

    async def _is_opaque(self, place: Place) -> bool:
        return is_opaque(await self._layers[place.layer].xattrs(place.nid))

    async def _find(self, node: NodeId) -> Stack:
        """The stack of a directory that nobody has needed yet, or that was forgotten.

        Up to where a stack is known, by what listings have shown or by ``..`` in its layer, then
        down in the merged tree.

        Raises:
            NotADirectoryNodeError: it is something else.
            ImageFormatError: the layer's ``..`` entries do not lead to its root.
        """
        names: list[bytes] = []
        current = node
        while current != ROOT_NODE and not isinstance(self._stacks.get(current), tuple):
            if len(names) == MAX_DEPTH:
                raise ImageFormatError(f"node {node} lies deeper than {MAX_DEPTH} directories")
            current, name = await self._above(current)
            names.append(name)
        stack = await self._stack(current)
        for name in reversed(names):
            found = await self._child(stack, name)
            if found is None:
                break
            place, stack = found
            if stack:
                self._remember(node_of(place), stack)
        if not stack or stack[0] != place_of(node):
            raise ImageFormatError(f"node {node} is not where its layer says")
        return stack

    async def _above(self, node: NodeId) -> tuple[NodeId, bytes]:
        """The directory that a directory is in, and its name there."""
        seen = self._stacks.get(node)
        if isinstance(seen, _Seen):
            return seen.parent, seen.name
        place = self._place(node)
        layer = self._layers[place.layer]
        parent = await layer.parent(place.nid)
        name = await self._name_of(layer, parent, place.nid)
        if parent == layer.image.root_nid:
            return ROOT_NODE, name
        return node_of(Place(place.layer, parent)), name

    async def _name_of(self, layer: ErofsLayer, parent: Nid, child: Nid) -> bytes:
        position = 0
        while entries := await layer.entries(parent, position):
            for entry in entries:
                if entry.nid == child:
                    return entry.name
            position = entries[-1].next_position
        raise ImageFormatError(f"directory nid {parent} does not list its child nid {child}")

    async def _plain_entries(self, directory: Place, start: int) -> list[DirectoryEntry]:
        """Entries of a directory that a single layer has."""
        number = directory.layer
        while entries := await self._layers[number].entries(directory.nid, start):
            shown = []
            for entry in entries:
                name, nid, file_type, position = entry
                if file_type in _WHITEOUT_TYPES and await self._is_listed_whiteout(
                    Place(number, nid), entry
                ):
                    continue
                node = node_in(number, nid)
                if file_type == stat.S_IFDIR and node not in self._stacks:
                    self._remember(node, (Place(number, nid),))
                shown.append(DirectoryEntry(name, node, file_type, position))
            if shown:
                return shown
            start = entries[-1].next_position
        return []

    async def _list(self, directory: NodeId, stack: Stack) -> list[DirectoryEntry]:
        """All entries of a merged directory, the topmost layer's first."""
        seen: set[bytes] = set()
        listing: list[DirectoryEntry] = []
        for part in stack:
            position = 0
            while entries := await self._layers[part.layer].entries(part.nid, position):
                position = entries[-1].next_position
                for entry in entries:
                    if entry.name in seen:
                        continue
                    seen.add(entry.name)
                    place = Place(part.layer, entry.nid)
                    if await self._is_listed_whiteout(place, entry):
                        continue
                    node = node_of(place)
                    if entry.file_type == stat.S_IFDIR and node not in self._stacks:
                        self._remember(node, _Seen(directory, entry.name))
                    listing.append(
                        DirectoryEntry(entry.name, node, entry.file_type, len(listing) + 1)
                    )
                if len(seen) > MAX_MERGED_ENTRIES:
                    raise ImageFormatError(
                        f"merged directory of more than {MAX_MERGED_ENTRIES} entries"
                    )
        if listing:
            listing[-1] = listing[-1]._replace(next_position=END_POSITION)
        return listing

    def _remember(self, node: NodeId, stack: Stack | _Seen) -> None:
        self._stacks[node] = stack
        self._stacks.move_to_end(node)
        if len(self._stacks) > MAX_STACKS:
            self._stacks.popitem(last=False)

    def _remember_listing(self, directory: NodeId, listing: list[DirectoryEntry]) -> None:
        self._listed += len(listing) - len(self._listings.pop(directory, ()))
        self._listings[directory] = listing
        while self._listed > MAX_LISTED and len(self._listings) > 1:
            _, dropped = self._listings.popitem(last=False)
            self._listed -= len(dropped)

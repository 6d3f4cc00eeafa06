"""The tree of an image under construction: what names mean while entries come in.

Entries are applied in order, as unpacking them over each other would: a later entry replaces
an earlier one of its name; only a directory over a directory keeps what is in it. Parents
that were not announced are made (``IMPLIED_DIRECTORY``), and a parent that is a symlink is
followed inside the image, as a container runtime does in its root.
"""

import stat
from collections.abc import Iterator
from typing import NamedTuple

from lazyfs.erofs.build.paths import shown, split_path
from lazyfs.erofs.build.sparse import ChunkMap
from lazyfs.erofs.build.xattrs import OPAQUE, ORIGIN, XattrSet, with_xattr
from lazyfs.erofs.ondisk import EROFS_NAME_LEN
from lazyfs.errors import ConversionError

WHITEOUT_PREFIX = b".wh."
"""Begins the names of whiteouts in layer tars, which are translated."""

UNPLACED = -1
"""Position of an inode that has none yet."""
MAX_SYMLINK_HOPS = 40
"""Symlinks followed for one name, as in Linux."""


class Attributes(NamedTuple):
    """What every kind of inode has."""

    permissions: int
    """The bits 07777 of the mode."""
    uid: int
    gid: int
    mtime_ns: int
    """Nanoseconds since the epoch; may be negative."""
    xattrs: XattrSet = ()


IMPLIED_DIRECTORY = Attributes(0o755, 0, 0, 0)
"""A directory that the entries use but never describe: root's, 0755, of 1970-01-01."""
WHITEOUT = Attributes(0, 0, 0, 0)
"""What overlayfs itself gives a whiteout, but for the time; nobody sees it."""


class Inode:
    """An inode, by itself a device node or FIFO; the rest is set when metadata is laid out."""

    __slots__ = ("attributes", "file_type", "nlink", "position", "rdev")

    def __init__(self, file_type: int, attributes: Attributes, rdev: int = 0) -> None:
        """``file_type`` is the ``S_IFMT`` part of the mode, ``rdev`` an encoded device number."""
        self.file_type = file_type
        self.attributes = attributes
        self.rdev = rdev
        self.nlink = 0
        self.position = UNPLACED

    @property
    def is_whiteout(self) -> bool:
        """Whether overlayfs takes it for a whiteout."""
        return self.file_type == stat.S_IFCHR and self.rdev == 0

    @property
    def size_bytes(self) -> int:
        """``i_size``."""
        return 0


class RegularFile(Inode):
    """File data, all of it from ``data_block`` on, or as ``chunks`` says."""

    __slots__ = ("_size_bytes", "chunks", "data_block")

    def __init__(
        self, attributes: Attributes, size_bytes: int, data_block: int, chunks: ChunkMap | None
    ) -> None:
        """``data_block`` counts from the start of the image's file data."""
        super().__init__(stat.S_IFREG, attributes)
        self._size_bytes = size_bytes
        self.data_block = data_block
        self.chunks = chunks

    @property
    def size_bytes(self) -> int:
        """``i_size``."""
        return self._size_bytes


class Symlink(Inode):
    """A symbolic link."""

    __slots__ = ("block", "target")

    def __init__(self, attributes: Attributes, target: bytes) -> None:
        """``target`` is stored as it is."""
        super().__init__(stat.S_IFLNK, attributes)
        self.target = target
        self.block = 0

    @property
    def size_bytes(self) -> int:
        """``i_size``."""
        return len(self.target)


class HardLink:
    """A name whose inode is not known yet, for its target comes later."""

    __slots__ = ("inode", "path", "target", "visited")

    def __init__(self, path: bytes, target: bytes) -> None:
        """Both as the entry has them."""
        self.path = path
        self.target = target
        self.inode: Inode | None = None
        self.visited = False


class Directory(Inode):
    """A directory; ``children`` is sorted by name only when the tree is complete."""

    __slots__ = ("block", "children", "data_size", "opaque", "parent")

    def __init__(self, attributes: Attributes) -> None:
        """Make an empty directory, its own parent until it is linked."""
        super().__init__(stat.S_IFDIR, attributes)
        self.children: dict[bytes, Inode | HardLink] = {}
        self.opaque = False
        self.parent = self
        self.data_size = 0
        self.block = 0

    @property
    def size_bytes(self) -> int:
        """``i_size``."""
        return self.data_size

    def inodes(self) -> Iterator[tuple[bytes, Inode]]:
        """The children, once the tree is complete."""
        for name, child in self.children.items():
            if not isinstance(child, HardLink):
                yield name, child


class Tree:
    """Names and what they mean so far."""

    def __init__(self, *, lowest: bool = False) -> None:
        """Make a tree of an implied root; with nothing below it, it hides nothing."""
        self.root = Directory(IMPLIED_DIRECTORY)
        self._lowest = lowest

    def locate(self, path: bytes) -> tuple[Directory, bytes]:
        """The directory and name that an entry of this path goes to; makes missing parents.

        Raises:
            ConversionError: the path is the root or cannot be in the image.
        """
        components = split_path(path)
        if not components:
            raise ConversionError(f"{shown(path)}: the root can only be a directory")
        name = components.pop()
        return self._make(components, path), name

    def put(self, directory: Directory, name: bytes, child: Inode | HardLink) -> None:
        """Bind ``name``, replacing what it was.

        A directory in place of anything else is opaque: the other thing hid what lower
        layers have there, and unpacking would have removed that.
        """
        if name.startswith(WHITEOUT_PREFIX):
            raise ConversionError(f"{shown(name)}: the name of a whiteout, which no image has")
        if isinstance(child, Directory):
            child.parent = directory
            child.opaque = not self._lowest and directory.children.get(name) is not None
        elif self._lowest and isinstance(child, Inode) and child.is_whiteout:
            directory.children.pop(name, None)
            return
        directory.children[name] = child

    def put_directory(self, path: bytes, attributes: Attributes) -> None:
        """Make a directory, or give one that is there other attributes."""
        if not split_path(path):
            self.root.attributes = attributes
            return
        directory, name = self.locate(path)
        present = directory.children.get(name)
        if isinstance(present, Directory):
            present.attributes = attributes
        else:
            self.put(directory, name, Directory(attributes))

    def put_hard_link(self, path: bytes, target: bytes) -> None:
        """Bind the name to the inode of ``target``, now or when the tree is complete.

        Raises:
            ConversionError: the target is a directory.
        """
        directory, name = self.locate(path)
        found = self._lookup(target, path)
        if isinstance(found, Directory):
            raise _link_to_directory(path, target)
        if found is None or isinstance(found, HardLink):
            self.put(directory, name, HardLink(path, target))
        else:
            self.put(directory, name, found)

    def put_whiteout(self, path: bytes) -> None:
        """Hide the name of lower layers, but nothing that this layer has itself."""
        directory, name = self.locate(path)
        present = directory.children.get(name)
        if self._lowest:
            return
        if present is None:
            self.put(directory, name, Inode(stat.S_IFCHR, WHITEOUT))
        elif isinstance(present, Directory):
            present.opaque = True

    def set_opaque(self, path: bytes) -> None:
        """Hide what lower layers have in the directory, which is made if need be."""
        self._make(split_path(path), path).opaque = not self._lowest

    def has_target(self, path: bytes) -> bool:
        """Whether a hard link to ``path`` leads to something, over other links if need be."""
        seen: set[int] = set()
        found = self._lookup(path, path)
        while isinstance(found, HardLink) and id(found) not in seen:
            seen.add(id(found))
            found = self._lookup(found.target, found.path)
        return isinstance(found, Inode)

    def way_to(self, path: bytes) -> list[Inode]:
        """The inodes from the root to a path, in a complete tree; nothing if it has no such path.

        Symlinks are not followed.
        """
        way: list[Inode] = [self.root]
        for name in path.split(b"/"):
            last = way[-1]
            child = last.children.get(name) if isinstance(last, Directory) else None
            if not isinstance(child, Inode):
                return []
            way.append(child)
        return way

    def describe(self, path: bytes, attributes: Attributes) -> None:
        """Give a directory that is there its attributes."""
        self._make(split_path(path), path).attributes = attributes

    def redirect(self, path: bytes, target: bytes) -> None:
        """Move what is in the directory ``path`` to where a symlink in its place would lead.

        What is there already stays, unless both are directories, which are merged.
        """
        *parents, name = split_path(path)
        parent = self._make(parents, path)
        moved = self._make([*parents, name], path)
        parent.children[name] = Symlink(IMPLIED_DIRECTORY, target)
        here = self._make([*parents, name], path)
        del parent.children[name]
        pending = [(moved, here)]
        while pending:
            source, into = pending.pop()
            into.opaque |= source.opaque
            for inner, child in source.children.items():
                present = into.children.get(inner)
                if isinstance(child, Directory) and isinstance(present, Directory):
                    pending.append((child, present))
                elif present is None:
                    if isinstance(child, Directory):
                        child.parent = into
                    into.children[inner] = child

    def complete(self) -> None:
        """Resolve hard links, count links, sort names, express opaqueness as xattrs.

        Raises:
            ConversionError: a hard link whose target is missing or a directory.
        """
        self.root.nlink = 2
        pending = [self.root]
        while pending:
            directory = pending.pop()
            has_whiteouts = False
            directory.children = dict(sorted(directory.children.items()))
            for name, child in directory.children.items():
                inode = self._resolve(child) if isinstance(child, HardLink) else child
                directory.children[name] = inode
                if isinstance(inode, Directory):
                    inode.nlink = 2
                    directory.nlink += 1
                    pending.append(inode)
                else:
                    inode.nlink += 1
                    has_whiteouts |= inode.is_whiteout
            if directory.opaque or has_whiteouts:
                xattrs = directory.attributes.xattrs
                if directory.opaque:
                    xattrs = with_xattr(xattrs, OPAQUE)
                if has_whiteouts:
                    xattrs = with_xattr(xattrs, ORIGIN)
                directory.attributes = directory.attributes._replace(xattrs=xattrs)

    def _resolve(self, link: HardLink) -> Inode:
        """The inode at the end of a chain of links, remembered in each of them."""
        chain: list[HardLink] = []
        found: Inode | HardLink | None = link
        while isinstance(found, HardLink) and not found.visited:
            found.visited = True
            chain.append(found)
            found = self._lookup(found.target, found.path)
        if isinstance(found, HardLink):
            found = found.inode
        last = chain[-1] if chain else link
        if found is None:
            raise ConversionError(
                f"{shown(last.path)}: hard link to {shown(last.target)}, which this layer does "
                "not have (links to files of lower layers cannot be converted)"
            )
        if isinstance(found, Directory):
            raise _link_to_directory(last.path, last.target)
        for member in chain:
            member.inode = found
        return found

    def _lookup(self, path: bytes, wanted_by: bytes) -> Inode | HardLink | None:
        """What a path means now (a whiteout: nothing); a symlink at its end is not followed."""
        try:
            components = split_path(path)
        except ConversionError as error:
            raise ConversionError(f"{shown(wanted_by)}: hard link to {error}") from None
        if not components:
            return self.root
        name = components.pop()
        directory = self._walk(components, wanted_by, create=False)
        found = directory.children.get(name) if directory is not None else None
        return None if isinstance(found, Inode) and found.is_whiteout else found

    def _make(self, components: list[bytes], path: bytes) -> Directory:
        """The directory at ``components``, made if need be."""
        directory = self._walk(components, path, create=True)
        if directory is None:
            raise AssertionError("a walk that creates always arrives")
        return directory

    def _walk(self, components: list[bytes], path: bytes, *, create: bool) -> Directory | None:
        """The directory at ``components``; None if it is not there and not to be made."""
        here = self.root
        left = components[::-1]
        hops = 0
        while left:
            name = left.pop()
            child = here.children.get(name)
            if isinstance(child, Directory):
                here = child
            elif isinstance(child, Symlink):
                hops += 1
                if hops > MAX_SYMLINK_HOPS:
                    raise ConversionError(f"{shown(path)}: too many symlinks on the way")
                if child.target.startswith(b"/"):
                    here = self.root
                parts = child.target.split(b"/")
                left += [part for part in reversed(parts) if part not in (b"", b".")]
            elif name == b"..":
                here = here.parent
            elif child is None or (isinstance(child, Inode) and child.is_whiteout):
                if not create:
                    return None
                if len(name) > EROFS_NAME_LEN:
                    raise ConversionError(
                        f"{shown(path)}: a symlink on the way has a name too long"
                    )
                made = Directory(IMPLIED_DIRECTORY)
                self.put(here, name, made)
                here = made
            elif create:
                raise ConversionError(f"{shown(path)}: {shown(name)} on the way is no directory")
            else:
                return None
        return here


def _link_to_directory(path: bytes, target: bytes) -> ConversionError:
    return ConversionError(f"{shown(path)}: hard link to the directory {shown(target)}")

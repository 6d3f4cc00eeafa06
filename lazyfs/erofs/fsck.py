"""Checks every structure of an image: inodes, directories, attributes, maps, link counts.

A problem is reported and the check goes on with what does not depend on it. Memory: one
directory block per level of depth, one bit per inode slot that holds an inode, and one number
per inode with several names.
"""

import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from lazyfs.erofs.compressed.runs import Fragment
from lazyfs.erofs.datamap import Run, run_end
from lazyfs.erofs.extents import METABOX, Extent, Hole
from lazyfs.erofs.image import Entry, Image, Inode
from lazyfs.errors import ImageFormatError, LazyfsError
from lazyfs.model import Nid
from lazyfs.steps import Steps

MAX_DEPTH = 16384
"""Directories inside each other; the longest path that Linux takes has 2048."""

MAX_NAMES = 1 << 28
"""Names that are looked at; directories that share their data could repeat them for ever."""

MAX_RUNS = 1 << 28
"""Extents that are looked at, for the same reason."""

MAX_LINKED = 1 << 18
"""Inodes with several names whose link count is checked ..."""

MAX_LINKED_PATH_BYTES = 32 << 20
"""... and the paths, one of each, that are kept to name them."""

MAX_BROKEN_BLOCKS = 16
"""Broken blocks after which the rest of a directory is passed over."""

MAX_PROBLEMS = 1 << 16
"""Problems after which the image is given up: a list of more helps nobody."""

_UNKNOWN_LINKS = 1
"""A directory's link count when it is not kept, as in Btrfs; mkfs.erofs writes it, too."""


class Problem(NamedTuple):
    """Something that is wrong with one object."""

    path: bytes
    """From the root; empty where it is not known, as for internal inodes."""
    nid: int
    what: str
    """``inode``, ``directory``, ``link target``, ``xattrs``, ``data``, ``link count``."""
    error: LazyfsError


@dataclass(slots=True)
class TreeCounts:
    """What was looked at."""

    inodes: int = 0
    directories: int = 0
    names: int = 0
    extents: int = 0
    problems: int = 0


Report = Callable[[Problem], None]

Readable = Callable[[int, int, int], None]
"""(device, address, length): raises ``LazyfsError`` unless these bytes can be had."""


def check_tree(image: Image, readable: Readable, report: Report) -> Steps[TreeCounts]:
    """Look at everything that the root leads to, and at the inodes that serve the others.

    Args:
        image: an opened one.
        readable: asked about file data that lies unchanged on a device; compressed data is
            read and decompressed.
        report: told of each problem.
    """
    check = _Check(image, readable, report)
    return (yield from check.run())


class _Seen:
    """A set of nids: one bit per slot, in pages that come as they are needed."""

    _BITS = 15

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}

    def add(self, nid: int) -> bool:
        """Whether it is new."""
        page = self._pages.setdefault(nid >> self._BITS, bytearray(1 << self._BITS - 3))
        place, bit = nid >> 3 & (1 << self._BITS - 3) - 1, 1 << (nid & 7)
        if page[place] & bit:
            return False
        page[place] |= bit
        return True


class _Level:
    """A directory that is being walked."""

    __slots__ = ("broken", "entries", "inode", "name", "position", "subdirectories")

    def __init__(self, inode: Inode, name: bytes) -> None:
        self.inode = inode
        self.name = name
        self.position = 0
        self.entries: list[Entry] = []
        """Of the present block, the next one last."""
        self.subdirectories = 0
        self.broken = 0
        """Blocks."""


class _Links(NamedTuple):
    """An inode that has, or should have, several names."""

    promised: int
    found: int
    path: bytes


class _Check:
    """One walk; ``name`` is that of an object in the innermost directory, None: itself."""

    def __init__(self, image: Image, readable: Readable, report: Report) -> None:
        self._image = image
        self._readable = readable
        self._report = report
        self._counts = TreeCounts()
        self._seen = _Seen()
        self._links: dict[int, _Links] = {}
        self._links_path_bytes = 0
        self._stack: list[_Level] = []

    def run(self) -> Steps[TreeCounts]:
        superblock = self._image.superblock
        for internal in (superblock.metabox_nid, superblock.packed_nid):
            inode = (yield from self._inode(internal, None)) if internal else None
            if inode is not None and inode.is_regular:
                yield from self._data(inode, None)
        root = yield from self._inode(self._image.root_nid, None)
        if root is not None and root.is_directory:
            yield from self._enter(root, b"", root.nid)
        elif root is not None:
            self._problem("inode", root.nid, None, "the root is no directory")
        while self._stack:
            yield from self._step(self._stack[-1])
        for nid, (promised, found, path) in self._links.items():
            if promised != found:
                error = ImageFormatError(f"link count is {promised}, there are {found} names")
                self._tell(Problem(path, nid, "link count", error))
        return self._counts

    def _step(self, level: _Level) -> Steps[None]:
        """The next name of the innermost directory, or its next block, or its end."""
        if level.entries:
            entry = level.entries.pop()
            if entry.name not in (b".", b".."):
                yield from self._entry(level, entry)
        elif level.position < level.inode.size_bytes and level.broken < MAX_BROKEN_BLOCKS:
            yield from self._block(level)
        else:
            promised = level.inode.nlink
            if promised not in (2 + level.subdirectories, _UNKNOWN_LINKS) and not level.broken:
                text = f"link count is {promised}, with {level.subdirectories} directories inside"
                self._problem("link count", level.inode.nid, None, text)
            self._stack.pop()

    def _block(self, level: _Level) -> Steps[None]:
        """Take the next block of a directory; a broken one is passed over."""
        block_bytes = self._image.superblock.block_bytes
        position = level.position
        level.position = (position // block_bytes + 1) * block_bytes
        try:
            entries = yield from self._image.entries(level.inode, position)
        except LazyfsError as error:
            self._problem("directory", level.inode.nid, None, error)
            level.broken += 1
            return
        level.entries = entries[::-1]
        self._counts.names += len(entries)
        if self._counts.names > MAX_NAMES:
            raise ImageFormatError(f"more than {MAX_NAMES} names")

    def _entry(self, level: _Level, entry: Entry) -> Steps[None]:
        name = entry.name
        inode = yield from self._inode(entry.nid, name)
        if inode is None:
            level.subdirectories += entry.file_type == stat.S_IFDIR
            return
        if entry.file_type not in (0, stat.S_IFMT(inode.mode)):
            text = f"its directory says type {entry.file_type:#o}, its mode is {inode.mode:#o}"
            self._problem("directory", inode.nid, name, text)
        new = self._seen.add(inode.nid)
        if inode.is_directory:
            level.subdirectories += 1
            if not new:
                self._problem("directory", inode.nid, name, "directory has two names")
            elif len(self._stack) == MAX_DEPTH:
                text = f"more than {MAX_DEPTH} directories inside each other"
                self._problem("directory", inode.nid, name, text)
            else:
                yield from self._enter(inode, name, level.inode.nid)
            return
        self._count_link(inode, name, new=new)
        if new:
            self._counts.inodes += 1
            yield from self._contents(inode, name)

    def _enter(self, inode: Inode, name: bytes, parent: Nid) -> Steps[None]:
        self._counts.inodes += 1
        self._counts.directories += 1
        self._seen.add(inode.nid)
        self._stack.append(_Level(inode, name))
        yield from self._xattrs(inode, None)
        try:
            found = yield from self._image.parent_nid(inode)
        except LazyfsError as error:
            self._problem("directory", inode.nid, None, error)
            return
        if found != parent:
            text = f"'..' is nid {found:#x}, the parent is {parent:#x}"
            self._problem("directory", inode.nid, None, text)

    def _inode(self, nid: Nid, name: bytes | None) -> Steps[Inode | None]:
        try:
            return (yield from self._image.inode(nid))
        except LazyfsError as error:
            self._problem("inode", nid, name, error)
            return None

    def _contents(self, inode: Inode, name: bytes) -> Steps[None]:
        """All of an inode that is no directory."""
        yield from self._xattrs(inode, name)
        if inode.is_regular:
            yield from self._data(inode, name)
        elif inode.is_symlink:
            try:
                yield from self._image.link_target(inode)
            except LazyfsError as error:
                self._problem("link target", inode.nid, name, error)

    def _xattrs(self, inode: Inode, name: bytes | None) -> Steps[None]:
        try:
            yield from self._image.xattrs(inode)
        except LazyfsError as error:
            self._problem("xattrs", inode.nid, name, error)

    def _count_link(self, inode: Inode, name: bytes, *, new: bool) -> None:
        known = self._links.get(inode.nid)
        if known is not None:
            self._links[inode.nid] = known._replace(found=known.found + 1)
        elif (inode.nlink != 1 or not new) and len(self._links) < MAX_LINKED:
            path = self._path(name) if self._links_path_bytes < MAX_LINKED_PATH_BYTES else b""
            self._links_path_bytes += len(path)
            self._links[inode.nid] = _Links(inode.nlink, 1 if new else 2, path)

    def _data(self, inode: Inode, name: bytes | None) -> Steps[None]:
        """Look at each extent of a file; a broken map ends it."""
        offset = 0
        while offset < inode.size_bytes:
            try:
                runs = yield from self._image.extents(inode, offset, inode.size_bytes - offset)
            except LazyfsError as error:
                self._problem("data", inode.nid, name, _at(offset, inode, error))
                return
            for run in runs:
                try:
                    yield from self._run(inode, run)
                except LazyfsError as error:
                    self._problem("data", inode.nid, name, _at(run.offset, inode, error))
            offset = run_end(runs[-1])
            self._counts.extents += len(runs)
            if self._counts.extents > MAX_RUNS:
                raise ImageFormatError(f"more than {MAX_RUNS} extents")

    def _run(self, inode: Inode, run: Run) -> Steps[None]:
        if isinstance(run, Hole):
            return
        if isinstance(run, Extent) and run.device != METABOX:
            self._readable(run.device, run.address, run.length)
        elif isinstance(run, Fragment):  # data of the packed inode, which is checked on its own
            packed = yield from self._image.inode(self._image.superblock.packed_nid)
            if run.packed_offset + run.length > packed.size_bytes:
                raise ImageFormatError(
                    f"fragment of {run.length} bytes at {run.packed_offset} of {packed.size_bytes}"
                )
        else:
            yield from self._image.read(inode, run.offset, run.length)

    def _path(self, name: bytes | None) -> bytes:
        names = [level.name for level in self._stack[1:]]
        return b"/" + b"/".join(names if name is None else [*names, name])

    def _problem(self, what: str, nid: int, name: bytes | None, error: LazyfsError | str) -> None:
        if isinstance(error, str):
            error = ImageFormatError(error)
        path = self._path(name) if self._stack else b""
        self._tell(Problem(path, nid, what, error))

    def _tell(self, problem: Problem) -> None:
        self._counts.problems += 1
        self._report(problem)
        if self._counts.problems > MAX_PROBLEMS:
            raise ImageFormatError(f"more than {MAX_PROBLEMS} problems")


def _at(offset: int, inode: Inode, error: LazyfsError) -> LazyfsError:
    return type(error)(f"at byte {offset} of {inode.size_bytes}: {error}")

"""Fills what a tar layer leaves open from the layers below it; blocks, for worker threads.

See ``lazyfs.erofs.build.lower``. What a hard link to a lower layer leads to is copied: an image
cannot link out of itself (EROFS image specification, section 3.7).
"""

import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from lazyfs.convert.images import open_temporary, read_at
from lazyfs.convert.tarstream import PIECE, EntryKind, TarEntry, TarReader
from lazyfs.erofs.build.builder import EntryAttributes, ImageBuilder
from lazyfs.erofs.build.lower import LowerNames, find_below, resolve_below
from lazyfs.erofs.build.paths import shown, split_path
from lazyfs.erofs.build.tree import Attributes
from lazyfs.errors import ConversionError

MAX_ROUNDS = 64
"""Times that a layer's directories are looked up: once, and once more after each symlink found."""

MAX_LINK_CHAIN = 8
"""Hard links that lead to each other in lower layers."""

SPECIAL_TYPES = {
    EntryKind.CHARACTER_DEVICE: stat.S_IFCHR,
    EntryKind.BLOCK_DEVICE: stat.S_IFBLK,
    EntryKind.FIFO: stat.S_IFIFO,
}


@dataclass(frozen=True, slots=True)
class LowerFile:
    """Anything but a directory, as a lower layer's tar has it; close ``data`` in the end."""

    entry: TarEntry
    data: BinaryIO
    """The bytes of the entry's segments."""

    def pieces(self) -> Iterator[bytes]:
        """The data in pieces."""
        left = sum(segment.length for segment in self.entry.segments)
        offset = 0
        while left:
            piece = read_at(self.data, offset, min(PIECE, left))
            offset += len(piece)
            left -= len(piece)
            yield piece


class Below(Protocol):
    """The layers below one; topmost first. Methods block."""

    def names(self) -> Sequence[LowerNames]:
        """What each of them says of directories."""
        ...

    def file(self, number: int, path: bytes) -> LowerFile | None:
        """What layer ``number`` has at a path, if it is not a directory."""
        ...


class _NothingBelow:
    """What the lowest layer lies on."""

    def names(self) -> Sequence[LowerNames]:
        return ()

    def file(self, number: int, path: bytes) -> LowerFile | None:
        raise AssertionError(f"there is no layer {number} to have {path!r}")


NOTHING_BELOW: Below = _NothingBelow()


@dataclass(frozen=True, slots=True)
class Lookups:
    """What was asked of the layers below; the image is the same wherever the answers are."""

    directories: Mapping[bytes, Attributes | bytes | None]
    links: bool
    """Whether files were asked for, too."""

    def same_on(self, names: Sequence[LowerNames]) -> bool:
        """Whether other layers below, topmost first, say the same."""
        return not self.links and all(
            find_below(names, path) == found for path, found in self.directories.items()
        )


def fill_gaps(builder: ImageBuilder, below: Below) -> Lookups | None:
    """Complete an image before it is finished.

    Returns:
        What was looked up; None: nothing, so that the layers below do not matter.

    Raises:
        ConversionError: a hard link leads nowhere, or symlinks in circles.
        OSError: the disk is full.
    """
    gaps = builder.gaps()
    if not gaps.directories and not gaps.links:
        return None
    names = below.names()
    asked: dict[bytes, Attributes | bytes | None] = {}
    for _ in range(MAX_ROUNDS):
        if not _fill_directories(builder, names, asked):
            break
    else:
        raise ConversionError(f"more than {MAX_ROUNDS} directories are symlinks in lower layers")
    copies: dict[bytes, bytes] = {}
    links = builder.gaps().links
    for path, target in links:
        _fill_link(builder, below, names, path, target, copies)
    return Lookups(asked, bool(links))


def _fill_directories(
    builder: ImageBuilder,
    names: Sequence[LowerNames],
    asked: dict[bytes, Attributes | bytes | None],
) -> bool:
    """Describe directories; stop at the first that is a symlink below, and say so."""
    for path in builder.gaps().directories:
        found = asked[path] = find_below(names, path)
        if isinstance(found, bytes):
            builder.redirect(path, found)
            return True
        if found is not None:
            builder.describe(path, found)
    return False


def _fill_link(
    builder: ImageBuilder,
    below: Below,
    names: Sequence[LowerNames],
    path: bytes,
    target: bytes,
    copies: dict[bytes, bytes],
) -> None:
    """Copy what a link leads to, once for all links to it."""
    wanted = resolve_below(names, target)
    for _ in range(MAX_LINK_CHAIN):
        if wanted is None:
            return  # the builder will say so
        if builder.has(wanted):
            builder.add_hard_link(path, wanted)
            return
        if wanted in copies:
            builder.add_hard_link(path, copies[wanted])
            return
        found = _find_file(below, names, wanted)
        if found is None:
            return
        with found.data:
            if found.entry.kind is not EntryKind.HARD_LINK:
                copies[wanted] = path
                add_entry(builder, path, found.entry, found.pieces())
                return
            wanted = resolve_below(names, found.entry.link_target)
    raise ConversionError(f"{shown(path)}: hard link over more than {MAX_LINK_CHAIN} others")


def _find_file(below: Below, names: Sequence[LowerNames], path: bytes) -> LowerFile | None:
    for number, layer in enumerate(names):
        if path in layer.directories:
            return None
        found = below.file(number, path)
        if found is not None or layer.hides(path):
            return found
    return None


def add_entry(builder: ImageBuilder, path: bytes, entry: TarEntry, data: Iterator[bytes]) -> None:
    """Add an entry of a tar under a path."""
    attributes = EntryAttributes(entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.xattrs)
    if entry.kind is EntryKind.FILE:
        builder.add_file(path, attributes, entry.size_bytes, entry.segments, data)
    elif entry.kind is EntryKind.DIRECTORY:
        builder.add_directory(path, attributes)
    elif entry.kind is EntryKind.SYMLINK:
        builder.add_symlink(path, attributes, entry.link_target)
    elif entry.kind is EntryKind.HARD_LINK:
        builder.add_hard_link(path, entry.link_target)
    else:
        file_type = SPECIAL_TYPES[entry.kind]
        builder.add_special(path, attributes, file_type, entry.major, entry.minor)


def extract(reader: TarReader, path: bytes) -> LowerFile | None:
    """What a tar has at a path, if it is not a directory; the last entry of the name counts.

    Raises:
        ConversionError: the tar is damaged.
        OSError: the disk is full.
    """
    found: TarEntry | None = None
    data = open_temporary()
    try:
        for entry in reader.entries():
            if b"/".join(split_path(entry.path)) != path:
                continue
            found = None if entry.kind is EntryKind.DIRECTORY else entry
            data.seek(0)
            data.truncate()
            if entry.kind is EntryKind.FILE:
                for piece in reader.data():
                    data.write(piece)
        data.flush()
    except BaseException:
        data.close()
        raise
    if found is None:
        data.close()
        return None
    return LowerFile(found, data)

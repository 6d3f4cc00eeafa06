"""The EROFS writer: entries in, file data out at once, metadata at the end.

Memory grows with the number of entries, not with their data. Data of a file that a later
entry replaces stays in the image, unused.
"""

import stat
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from lazyfs.erofs.build.front import Front, HotRange, plan_front
from lazyfs.erofs.build.lower import Gaps, LowerNames, find_gaps, names_of
from lazyfs.erofs.build.metadata import BLOCK_SIZE, FileData, encode_metadata
from lazyfs.erofs.build.order import BlockSpan, DataOrder
from lazyfs.erofs.build.paths import PATH_LIMIT, shown
from lazyfs.erofs.build.space import round_up
from lazyfs.erofs.build.sparse import ChunkMap, check_segments, fill_extents, plan_chunks
from lazyfs.erofs.build.tree import Attributes, Inode, RegularFile, Symlink, Tree
from lazyfs.erofs.build.xattrs import XattrSet, xattr_set
from lazyfs.errors import ConversionError
from lazyfs.model import ByteRange

MAX_ID = 0xFFFFFFFF
MAX_MAJOR = 0xFFF
MAX_MINOR = 0xFFFFF
"""What ``new_encode_dev`` of Linux's ``kdev_t.h`` has bits for."""
SPARSE_OVERHEAD_LIMIT = 512 << 20
"""Bytes that all sparse files of an image may take beyond their data: block maps and zeros.

A header of a few bytes can announce a file of exbibytes, whose block map would be real.
"""


class Spool(Protocol):
    """Takes the file data, in order."""

    def append(self, data: bytes | memoryview) -> None:
        """Write ``data`` behind what was written before."""
        ...


@dataclass(frozen=True, slots=True)
class EntryAttributes:
    """What every entry has, as its source says it; checked when the entry is added."""

    permissions: int
    """Mode; the bits of 07777 count."""
    uid: int
    gid: int
    mtime_ns: int
    """Nanoseconds since the epoch; may be negative."""
    xattrs: Mapping[bytes, bytes]
    """By full name."""


class ImageBuilder:
    """Builds one image. Every ``add_*`` raises ``ConversionError`` naming the entry."""

    def __init__(self, spool: Spool, *, lowest: bool = False) -> None:
        """Begin an image.

        Args:
            spool: file data will go there, each file at a multiple of the block size.
            lowest: nothing lies below the image, so it gets no whiteouts and opaque
                directories.
        """
        self._spool = spool
        self._tree = Tree(lowest=lowest)
        self._data_size = 0
        self._data_checksum = 0
        self._sparse_overhead = 0
        self._xattr_sets: dict[XattrSet, XattrSet] = {}
        self._front: Front | None = None
        self._order = DataOrder((), 0)
        self._hot_metadata: tuple[BlockSpan, ...] = ()
        self.dropped_xattrs = 0
        """Attributes of a name space that EROFS does not have, such as ``com.apple``."""

    @property
    def data_size(self) -> int:
        """Bytes that went to the spool, a whole number of blocks."""
        return self._data_size

    def add_directory(self, path: bytes, attributes: EntryAttributes) -> None:
        """Add a directory; the root has the path ``/``, ``.`` or nothing."""
        self._tree.put_directory(path, self._attributes(path, attributes))

    def add_file(
        self,
        path: bytes,
        attributes: EntryAttributes,
        size_bytes: int,
        segments: Sequence[ByteRange],
        pieces: Iterable[bytes],
    ) -> None:
        """Add a regular file and spool its data.

        Args:
            path: of the file.
            attributes: of the file.
            size_bytes: of the file, holes included.
            segments: where the file has data, in order; the rest are holes.
            pieces: the bytes of the segments, one after the other.
        """
        checked = self._attributes(path, attributes)
        directory, name = self._tree.locate(path)
        block = self._data_size // BLOCK_SIZE
        chunks: ChunkMap | None = None
        extents = [ByteRange(0, round_up(size_bytes, BLOCK_SIZE))]
        if segments != [ByteRange(0, size_bytes)]:
            try:
                check_segments(segments, size_bytes)
                chunks = plan_chunks(size_bytes, segments, BLOCK_SIZE)
                if chunks is not None:
                    extents = list(chunks.extents(size_bytes, BLOCK_SIZE))
                    self._count_overhead(chunks, extents, segments)
            except ConversionError as error:
                raise ConversionError(f"{shown(path)}: {error}") from None
        for piece in fill_extents(extents, segments, pieces):
            self._spool.append(piece)
            self._data_checksum = zlib.crc32(piece, self._data_checksum)
        self._data_size += sum(extent.length for extent in extents)
        self._tree.put(directory, name, RegularFile(checked, size_bytes, block, chunks))

    def add_symlink(self, path: bytes, attributes: EntryAttributes, target: bytes) -> None:
        """Add a symbolic link."""
        if not 0 < len(target) <= PATH_LIMIT or b"\0" in target:
            raise ConversionError(
                f"{shown(path)}: symlink target of {len(target)} bytes must have 1 to "
                f"{PATH_LIMIT}, none of them NUL"
            )
        directory, name = self._tree.locate(path)
        self._tree.put(directory, name, Symlink(self._attributes(path, attributes), target))

    def add_special(
        self, path: bytes, attributes: EntryAttributes, file_type: int, major: int, minor: int
    ) -> None:
        """Add a device node or FIFO; ``file_type`` is ``S_IFCHR``, ``S_IFBLK`` or ``S_IFIFO``."""
        rdev = 0
        if file_type != stat.S_IFIFO:
            if not (0 <= major <= MAX_MAJOR and 0 <= minor <= MAX_MINOR):
                raise ConversionError(f"{shown(path)}: device number {major}:{minor} out of range")
            rdev = minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
        directory, name = self._tree.locate(path)
        self._tree.put(directory, name, Inode(file_type, self._attributes(path, attributes), rdev))

    def add_hard_link(self, path: bytes, target: bytes) -> None:
        """Add another name of ``target``, which may come later."""
        self._tree.put_hard_link(path, target)

    def add_whiteout(self, path: bytes) -> None:
        """Hide ``path`` of lower layers: overlayfs's character device 0:0."""
        self._tree.put_whiteout(path)

    def set_opaque(self, path: bytes) -> None:
        """Hide what lower layers have in the directory ``path``."""
        self._tree.set_opaque(path)

    def gaps(self) -> Gaps:
        """What the entries so far leave open."""
        return find_gaps(self._tree)

    def names(self) -> LowerNames:
        """What the image says to layers above it."""
        return names_of(self._tree)

    def has(self, path: bytes) -> bool:
        """Whether a hard link to ``path`` leads to something in the image."""
        return self._tree.has_target(path)

    def describe(self, path: bytes, attributes: Attributes) -> None:
        """Give a directory that has no entry its attributes."""
        self._tree.describe(path, attributes)

    def redirect(self, path: bytes, target: bytes) -> None:
        """Move what is in a directory to where a lower layer's symlink of its name leads."""
        self._tree.redirect(path, target)

    def arrange(self, hot: Sequence[HotRange] = ()) -> DataOrder:
        """End the entries; say where the spooled data will lie in the image.

        Args:
            hot: to be put in front of the rest; see ``plan_front``.

        Raises:
            ConversionError: the entries make no valid image.
        """
        self._tree.complete()
        self._front = plan_front(self._tree.way_to, hot, BLOCK_SIZE)
        self._order = DataOrder(self._front.spans, self._data_size // BLOCK_SIZE)
        return self._order

    @property
    def missing(self) -> tuple[bytes, ...]:
        """Hot paths that are no regular files of the arranged image."""
        return self._front.missing if self._front is not None else ()

    @property
    def hot_metadata(self) -> tuple[BlockSpan, ...]:
        """Blocks of the finished metadata that reading the hot files takes."""
        return self._hot_metadata

    def finish(self, data_alignment_bytes: int = BLOCK_SIZE) -> bytearray:
        """The metadata: whole blocks that stand before the data in the image.

        The data are those of the spool, in the order that ``arrange`` gave.

        Args:
            data_alignment_bytes: where the data may begin: at a multiple of this, itself a
                multiple of the block size.

        Raises:
            ConversionError: the entries make no valid image.
        """
        if self._front is None:
            self.arrange()
        hot = self._front.inodes if self._front is not None else ()
        file_data = FileData(self._data_size // BLOCK_SIZE, self._data_checksum, self._order)
        metadata = encode_metadata(self._tree.root, file_data, data_alignment_bytes, hot)
        self._hot_metadata = metadata.hot
        return metadata.data

    def _attributes(self, path: bytes, given: EntryAttributes) -> Attributes:
        if not (0 <= given.uid <= MAX_ID and 0 <= given.gid <= MAX_ID):
            raise ConversionError(f"{shown(path)}: owner {given.uid}:{given.gid} out of range")
        if not -(1 << 63) <= given.mtime_ns // 1_000_000_000 < 1 << 63:
            raise ConversionError(f"{shown(path)}: time {given.mtime_ns} ns out of range")
        xattrs: XattrSet = ()
        if given.xattrs:
            try:
                xattrs, dropped = xattr_set(given.xattrs)
            except ConversionError as error:
                raise ConversionError(f"{shown(path)}: {error}") from None
            self.dropped_xattrs += dropped
            xattrs = self._xattr_sets.setdefault(xattrs, xattrs)
        return Attributes(given.permissions & 0o7777, given.uid, given.gid, given.mtime_ns, xattrs)

    def _count_overhead(
        self, chunks: ChunkMap, extents: Sequence[ByteRange], segments: Sequence[ByteRange]
    ) -> None:
        stored = sum(extent.length for extent in extents) + chunks.map_size
        self._sparse_overhead += stored - sum(segment.length for segment in segments)
        if self._sparse_overhead > SPARSE_OVERHEAD_LIMIT:
            raise ConversionError(
                f"sparse files take {self._sparse_overhead} bytes beyond their data, at most "
                f"{SPARSE_OVERHEAD_LIMIT}"
            )

"""An EROFS image: every operation is a generator that asks for the bytes it needs."""

from lazyfs.erofs import limits, ondisk, xattr
from lazyfs.erofs.compressed.runs import Encoded, Fragment
from lazyfs.erofs.datamap import Run
from lazyfs.erofs.devices import AddressSpace, DeviceSlot, decode_device_table
from lazyfs.erofs.directory import DirectoryBlock, Entry, start_index
from lazyfs.erofs.extents import Extent, Hole
from lazyfs.erofs.inode import Inode
from lazyfs.erofs.reader import Reader
from lazyfs.erofs.superblock import (
    HEAD_BYTES,
    Superblock,
    check_checksum,
    checksum_length,
    decode_superblock,
)
from lazyfs.errors import (
    ImageFormatError,
    NoSuchEntryError,
    NotADirectoryNodeError,
    NotAFileNodeError,
    NotASymlinkNodeError,
)
from lazyfs.model import Nid
from lazyfs.steps import Need, Steps

__all__ = [
    "DeviceSlot",
    "Encoded",
    "Entry",
    "Extent",
    "Fragment",
    "Hole",
    "Image",
    "Inode",
    "Run",
    "Superblock",
    "open_image",
]


def open_image(*, flat: bool = False) -> "Steps[Image]":
    """Read superblock and device table.

    Args:
        flat: there are no other devices: device 0 holds their bytes too, at their unified
            addresses (such as a tar index with the tar behind it).

    Raises:
        ImageFormatError: not an EROFS image, or a broken one.
        UnsupportedFeatureError: it needs a feature that lazyfs does not have.
    """
    head = yield Need(0, ondisk.EROFS_SUPER_OFFSET, HEAD_BYTES)
    superblock = decode_superblock(head)
    covered = checksum_length(superblock)
    if covered:
        check_checksum((yield Need(0, ondisk.EROFS_SUPER_OFFSET, covered)))
    slots: tuple[DeviceSlot, ...] = ()
    if superblock.device_count:
        length = superblock.device_count * ondisk.EROFS_DEVT_SLOT_SIZE
        table = yield Need(0, superblock.device_table_address, length)
        slots = decode_device_table(superblock, table)
    return Image(superblock, slots, Reader(superblock, AddressSpace(slots, flat=flat)))


class Image:
    """An image whose superblock is known; open one with ``open_image``."""

    def __init__(
        self, superblock: Superblock, devices: tuple[DeviceSlot, ...], reader: Reader
    ) -> None:
        """Take what ``open_image`` has read."""
        self.superblock = superblock
        self.devices = devices
        self.root_nid = superblock.root_nid
        self._reader = reader
        self._long_prefixes: tuple[bytes | None, ...] | None = None

    def inode(self, nid: Nid) -> Steps[Inode]:
        """The inode ``nid``.

        Raises:
            ImageFormatError: there is none, or it is broken.
            UnsupportedFeatureError: it has an unknown form.
        """
        return self._reader.inode(nid)

    def lookup(self, directory: Inode, name: bytes) -> Steps[Entry]:
        """The entry of that name, by binary search over the blocks and then in one.

        Raises:
            NoSuchEntryError: there is none.
            NotADirectoryNodeError: ``directory`` is none.
            ImageFormatError: a block on the way is broken.
        """
        self._check_directory(directory)
        low, high = 0, -(-directory.size_bytes >> self.superblock.block_bits)
        candidate: DirectoryBlock | None = None
        while low < high:  # halves each time
            middle = (low + high) // 2
            block = yield from self._directory_block(directory, middle)
            if block.name(0) <= name:
                candidate = block
                low = middle + 1
            else:
                high = middle
        entry = candidate.find(name) if candidate else None
        if entry is None:
            raise NoSuchEntryError(f"directory nid {directory.nid:#x}: no {name!r}")
        return entry

    def entries(self, directory: Inode, position: int) -> Steps[list[Entry]]:
        """The entries of one block from a position on; none at the end.

        Among them are ``.`` (unless the directory leaves it out) and ``..``.

        Args:
            directory: the directory.
            position: 0 or the ``next_position`` of an entry.

        Raises:
            NotADirectoryNodeError: ``directory`` is none.
            ImageFormatError: the block breaks the format, or its names are out of order.
        """
        self._check_directory(directory)
        if position >= directory.size_bytes:
            return []
        number = position >> self.superblock.block_bits
        index = start_index(position, self.superblock.block_bytes)
        block = yield from self._directory_block(directory, number)
        if index >= block.count:  # no position that we gave out
            return (yield from self.entries(directory, number + 1 << self.superblock.block_bits))
        before = None
        if index:
            before = block.name(index - 1)
        elif number:
            previous = yield from self._directory_block(directory, number - 1)
            before = previous.name(previous.count - 1)
        return block.entries(index, before)

    def parent_nid(self, directory: Inode) -> Steps[Nid]:
        """What ``..`` of a directory says.

        In a sound image that is the directory in which the name stood that led here (the
        root's is the root): who checks it needs no other guard against loops.

        Raises:
            NotADirectoryNodeError: ``directory`` is none.
            ImageFormatError: it has no ``..``, or a block on the way is broken.
        """
        self._check_directory(directory)
        if directory.size_bytes:
            entry = (yield from self._directory_block(directory, 0)).parent()
            if entry is not None:  # it is, unless a block full of names begins with "!" and such
                return entry.nid
        try:
            return (yield from self.lookup(directory, b"..")).nid
        except NoSuchEntryError:
            raise ImageFormatError(f"directory nid {directory.nid:#x}: no '..'") from None

    def read(self, inode: Inode, offset: int, length: int) -> Steps[bytes]:
        """File data; short only at the end of the file.

        Raises:
            NotAFileNodeError: not a regular file.
            ImageFormatError: the map of the data is broken.
        """
        if not inode.is_regular:
            raise NotAFileNodeError(f"nid {inode.nid:#x}: mode {inode.mode:#o}")
        length = min(length, inode.size_bytes - offset)
        if length <= 0:
            return b""
        return (yield from self._reader.data(inode, offset, length))

    def extents(self, inode: Inode, offset: int, length: int) -> Steps[list[Run]]:
        """Where file data lies, in order and without gaps; none at the end of the file.

        The first run may begin before ``offset``. The last one may end behind the range, or
        before its end: then go on from there.

        Raises:
            ImageFormatError: the map of the data is broken.
        """
        end = min(offset + length, inode.size_bytes)
        if inode.is_special or offset >= end:
            return []
        return (yield from self._reader.map.runs(inode, offset, end))

    def link_target(self, inode: Inode) -> Steps[bytes]:
        """Target of a symbolic link.

        Raises:
            NotASymlinkNodeError: not a symbolic link.
            ImageFormatError: no such target can be.
        """
        if not inode.is_symlink:
            raise NotASymlinkNodeError(f"nid {inode.nid:#x}: mode {inode.mode:#o}")
        if not 0 < inode.size_bytes <= limits.MAX_LINK_BYTES:
            raise ImageFormatError(f"nid {inode.nid:#x}: link of {inode.size_bytes} bytes")
        target = yield from self._reader.data(inode, 0, inode.size_bytes)
        if b"\0" in target:
            raise ImageFormatError(f"nid {inode.nid:#x}: NUL in the link {target!r}")
        return target

    def xattrs(self, inode: Inode) -> Steps[dict[bytes, bytes]]:
        """All extended attributes by full name.

        Raises:
            ImageFormatError: they are broken.
            UnsupportedFeatureError: they have an unknown form.
        """
        if not inode.xattr_bytes:
            return {}
        raw = yield from xattr.read_raw_xattrs(self.superblock, inode, self._reader.metadata)
        prefixes: tuple[bytes | None, ...] = ()
        if xattr.needs_long_prefixes(raw):
            prefixes = yield from self._read_long_prefixes()
        return xattr.named_xattrs(inode, raw, prefixes)

    def _check_directory(self, inode: Inode) -> None:
        if not inode.is_directory:
            raise NotADirectoryNodeError(f"nid {inode.nid:#x}: mode {inode.mode:#o}")

    def _directory_block(self, directory: Inode, number: int) -> Steps[DirectoryBlock]:
        offset = number << self.superblock.block_bits
        length = min(self.superblock.block_bytes, directory.size_bytes - offset)
        data = yield from self._reader.data(directory, offset, length)
        return DirectoryBlock(directory, offset, data)

    def _read_long_prefixes(self) -> Steps[tuple[bytes | None, ...]]:
        if self._long_prefixes is None:
            superblock = self.superblock
            holder: Inode | None = None
            if not superblock.has_compat(ondisk.EROFS_FEATURE_COMPAT_PLAIN_XATTR_PFX):
                if superblock.metabox_nid:
                    holder = yield from self._reader.metabox()
                elif superblock.packed_nid:
                    holder = yield from self._reader.packed()

            def read(offset: int, length: int) -> Steps[bytes]:
                if holder is None:
                    return (yield from self._reader.metadata(False, offset, length))
                return (yield from self.read(holder, offset, length))

            self._long_prefixes = yield from xattr.read_long_prefixes(superblock, read)
        return self._long_prefixes

"""An EROFS image: every operation is a generator that asks for the bytes it needs."""

from collections.abc import Sequence
from typing import TypeAlias

from lazyfs.erofs import limits, ondisk, xattr
from lazyfs.erofs.compressed.codecs import decompress
from lazyfs.erofs.compressed.map import CompressedMap, open_compressed_map
from lazyfs.erofs.compressed.runs import Encoded, Fragment
from lazyfs.erofs.compressed.window import window_bytes
from lazyfs.erofs.devices import AddressSpace, DeviceSlot, decode_device_table
from lazyfs.erofs.directory import DirectoryBlock, Entry, start_index
from lazyfs.erofs.extents import (
    METABOX,
    Extent,
    Hole,
    chunk_map,
    chunk_runs,
    flat_run,
)
from lazyfs.erofs.inode import Inode, decode_inode, inode_address, is_extended
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
from lazyfs.steps import Derive, Need, Steps

Run: TypeAlias = Extent | Hole | Encoded | Fragment

__all__ = ["DeviceSlot", "Entry", "Extent", "Hole", "Image", "Inode", "Superblock", "open_image"]


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
    return Image(superblock, slots, AddressSpace(slots, flat=flat))


class Image:
    """An image whose superblock is known; open one with ``open_image``.

    Nothing is read before it is needed, and little is kept: the inode of the metabox and
    the table of long xattr prefixes, once something asks for them.
    """

    def __init__(
        self, superblock: Superblock, devices: tuple[DeviceSlot, ...], space: AddressSpace
    ) -> None:
        """Take what ``open_image`` has read."""
        self.superblock = superblock
        self.devices = devices
        self.root_nid = superblock.root_nid
        self._space = space
        self._window_bytes = window_bytes(superblock)
        self._metabox: Inode | None = None
        self._packed: Inode | None = None
        self._maps: dict[Nid, CompressedMap] = {}
        self._long_prefixes: tuple[bytes | None, ...] | None = None

    def inode(self, nid: Nid) -> Steps[Inode]:
        """The inode ``nid``.

        Raises:
            ImageFormatError: there is none, or it is broken.
            UnsupportedFeatureError: it has an unknown form.
        """
        address = inode_address(self.superblock, nid)
        offset = address % self._window_bytes
        in_metabox = bool(nid >> ondisk.EROFS_DIRENT_NID_METABOX_BIT)
        data = yield from self._window(in_metabox, address - offset)
        if offset >= len(data):
            raise ImageFormatError(f"nid {nid:#x}: behind the end of the metabox")
        if is_extended(data, offset) and offset + ondisk.INODE_EXTENDED.size_bytes > len(data):
            data = data[offset:] + (
                yield from self._window(in_metabox, address - offset + self._window_bytes)
            )
            offset = 0
        return decode_inode(self.superblock, nid, address, data, offset)

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
        block_bytes = self.superblock.block_bytes
        index = start_index(position, block_bytes)
        number = position >> self.superblock.block_bits
        if position >= directory.size_bytes:
            return []
        block = yield from self._directory_block(directory, number)
        before = None
        if index:
            before = block.name(min(index, block.count) - 1)
        elif number:
            previous = yield from self._directory_block(directory, number - 1)
            before = previous.name(previous.count - 1)
        return block.entries(index, before)

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
        return (yield from self._data(inode, offset, length))

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
        return (yield from self._runs(inode, offset, end))

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
        target = yield from self._data(inode, 0, inode.size_bytes)
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
        raw = yield from xattr.read_raw_xattrs(self.superblock, inode, self._metadata)
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
        return DirectoryBlock(directory, offset, (yield from self._data(directory, offset, length)))

    # --- data -------------------------------------------------------------------------------

    def _data(self, inode: Inode, offset: int, length: int) -> Steps[bytes]:
        """Bytes of anything that has data; the range is inside it."""
        end = offset + length
        pieces = []
        while offset < end:  # each turn gets at least one run
            for run in (yield from self._runs(inode, offset, end)):
                stop = min(run.offset + run.length, end)
                pieces.append((yield from self._part(inode, run, offset, stop)))
                offset = stop
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _runs(self, inode: Inode, offset: int, end: int) -> Steps[list[Run]]:
        """Runs from ``offset``, at least one, up to ``end`` or a limit; inside the file."""
        if inode.layout == ondisk.EROFS_INODE_CHUNK_BASED:
            runs = yield from self._chunk_runs(inode, offset, end)
        elif inode.is_compressed:
            runs = yield from self._compressed_runs(inode, offset, end)
        else:
            return self._placed(flat_run(self.superblock, inode, offset, end))
        while runs[0].offset + runs[0].length <= offset:  # other parts of the first extent
            del runs[0]
        return runs

    def _compressed_runs(self, inode: Inode, offset: int, end: int) -> Steps[list[Run]]:
        compressed = self._maps.get(inode.nid)
        if compressed is None:
            compressed = yield from open_compressed_map(self.superblock, inode, self._window)
            if len(self._maps) >= limits.MAX_KEPT_MAPS:
                self._maps.pop(next(iter(self._maps)), None)
            self._maps[inode.nid] = compressed
        runs: list[Run] = []
        while offset < end and len(runs) < limits.MAX_MAP_ENTRIES:
            for run in (yield from compressed.runs_at(offset)):
                runs += self._placed(run)
            offset = runs[-1].offset + runs[-1].length
        return runs

    def _placed(self, run: Run) -> list[Run]:
        """The run with its address in the unified space made one of a device."""
        if isinstance(run, Hole | Fragment) or run.device == METABOX:
            return [run]
        if isinstance(run, Encoded):
            places = self._space.resolve(0, run.address, run.stored_bytes)
            if len(places) > 1:
                raise ImageFormatError(f"pcluster at {run.address} is on two devices")
            return [run._replace(device=places[0].device, address=places[0].address)]
        offset = run.offset
        placed: list[Run] = []
        for place in self._space.resolve(0, run.address, run.length):
            placed.append(Extent(offset, place.length, place.device, place.address))
            offset += place.length
        return placed

    def _chunk_runs(self, inode: Inode, offset: int, end: int) -> Steps[list[Run]]:
        chunks = chunk_map(self.superblock, inode)
        first = offset >> chunks.chunk_bits
        count = min((end - 1 >> chunks.chunk_bits) + 1 - first, limits.MAX_MAP_ENTRIES)
        entries = yield from self._metadata(
            inode.in_metabox,
            chunks.address + first * chunks.entry_bytes,
            count * chunks.entry_bytes,
        )
        return [*chunk_runs(self.superblock, inode, chunks, self._space, first, entries)]

    def _part(self, inode: Inode, run: Run, start: int, stop: int) -> Steps[bytes]:
        """The bytes of a run from ``start`` to ``stop``, both in the file."""
        length = stop - start
        if isinstance(run, Hole):
            return bytes(length)
        if isinstance(run, Encoded):
            data = yield from self._decompressed(run)
            return data[start - run.offset : stop - run.offset]
        if isinstance(run, Fragment):
            return (
                yield from self._fragment(inode, run.packed_offset + start - run.offset, length)
            )
        address = run.address + start - run.offset
        if run.device == METABOX:
            return (yield from self._metadata(True, address, length))
        if length <= limits.MAX_NEED_BYTES:
            return (yield Need(run.device, address, length))
        pieces = []
        for skip in range(0, length, limits.MAX_NEED_BYTES):
            piece_length = min(limits.MAX_NEED_BYTES, length - skip)
            pieces.append((yield Need(run.device, address + skip, piece_length)))
        return b"".join(pieces)

    def _decompressed(self, run: Encoded) -> Steps[bytes]:
        """All bytes of the run's extent."""
        padded = self.superblock.has_incompat(ondisk.EROFS_FEATURE_INCOMPAT_LZ4_0PADDING)
        stored = b""
        inputs: tuple[Need, ...] = ()
        if run.device == METABOX:
            stored = yield from self._metadata(True, run.address, run.stored_bytes)
        else:
            inputs = (Need(run.device, run.address, run.stored_bytes),)

        def compute(answers: Sequence[bytes]) -> bytes:
            return decompress(
                run.algorithm,
                answers[0] if answers else stored,
                run.length,
                partial=run.partial,
                padded=padded,
            )

        return (yield Derive(run[1:], inputs, compute, run.length))

    def _fragment(self, inode: Inode, offset: int, length: int) -> Steps[bytes]:
        if inode.nid == self.superblock.packed_nid or not self.superblock.packed_nid:
            raise ImageFormatError(f"nid {inode.nid:#x}: has a fragment, and must not")
        if self._packed is None:
            self._packed = yield from self._internal_inode(self.superblock.packed_nid)
        if offset + length > self._packed.size_bytes:
            raise ImageFormatError(
                f"nid {inode.nid:#x}: fragment at {offset} of {self._packed.size_bytes}"
            )
        return (yield from self._data(self._packed, offset, length))

    # --- metadata ---------------------------------------------------------------------------

    def _window(self, in_metabox: bool, address: int) -> Steps[bytes]:
        """The aligned window of metadata at ``address``; short at the metabox's end."""
        if not in_metabox:
            return (yield Need(0, address, self._window_bytes))
        metabox = yield from self._metabox_inode()
        length = min(self._window_bytes, metabox.size_bytes - address)
        return (yield from self._metadata(True, address, length))

    def _metadata(self, in_metabox: bool, address: int, length: int) -> Steps[bytes]:
        """Metadata by byte address: of the first device, or of the metabox."""
        if not in_metabox:
            if address + length > limits.MAX_ADDRESS:
                raise ImageFormatError(f"metadata at {address}")
            return (yield Need(0, address, length))
        metabox = yield from self._metabox_inode()
        if not 0 <= address <= address + length <= metabox.size_bytes:
            raise ImageFormatError(f"metabox: {length} bytes at {address} of {metabox.size_bytes}")
        return (yield from self._data(metabox, address, length))

    def _metabox_inode(self) -> Steps[Inode]:
        if self._metabox is None:
            if not self.superblock.metabox_nid:
                raise ImageFormatError("metadata in the metabox, but the image has none")
            self._metabox = yield from self._internal_inode(self.superblock.metabox_nid)
        return self._metabox

    def _internal_inode(self, nid: Nid) -> Steps[Inode]:
        inode = yield from self.inode(nid)
        if not inode.is_regular:
            raise ImageFormatError(f"internal nid {nid:#x}: mode {inode.mode:#o}")
        return inode

    def _read_long_prefixes(self) -> Steps[tuple[bytes | None, ...]]:
        if self._long_prefixes is None:
            superblock = self.superblock
            holder: Inode | None = None
            if not superblock.has_compat(ondisk.EROFS_FEATURE_COMPAT_PLAIN_XATTR_PFX):
                if superblock.metabox_nid:
                    holder = yield from self._metabox_inode()
                elif superblock.packed_nid:
                    holder = yield from self._internal_inode(superblock.packed_nid)

            def read(offset: int, length: int) -> Steps[bytes]:
                if holder is None:
                    return (yield from self._metadata(False, offset, length))
                return (yield from self.read(holder, offset, length))

            self._long_prefixes = yield from xattr.read_long_prefixes(superblock, read)
        return self._long_prefixes

"""Where the fields of an EROFS image lie, and what a hostile writer could put there."""

import itertools
import random
import struct
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple, get_args, get_type_hints

from lazyfs.erofs import ondisk
from lazyfs.erofs.compressed.header import header_address
from lazyfs.erofs.image import Extent, Inode
from lazyfs.erofs.inode import inode_address
from lazyfs.model import Nid
from tests.support.erofs_files import ImageFiles, golden_devices, sealed

PER_KIND = 3
"""Records of one kind (and data layout) that are taken from an image."""

SUPERBLOCK_AT = ondisk.EROFS_SUPER_OFFSET


class Field(NamedTuple):
    """Bytes of an image that mean something together."""

    name: str
    offset: int
    width: int


def fields_of(record: type, offset: int, kind: str) -> list[Field]:
    """The fields of a record at ``offset``."""
    fields = []
    for name, hint in get_type_hints(record, include_extras=True).items():
        width = struct.calcsize("<" + get_args(hint)[1])
        fields.append(Field(f"{kind}.{name}", offset, width))
        offset += width
    return fields


def numbered(kind: str, offset: int, width: int, count: int) -> list[Field]:
    """An array of numbers."""
    return [Field(f"{kind}[{n}]", offset + n * width, width) for n in range(count)]


class FieldTable:
    """Collects some fields of each kind from a sound image."""

    def __init__(self, devices: list[bytes]) -> None:
        self._files = ImageFiles(devices)
        self._size = len(devices[0])
        self._taken: dict[str, int] = {}
        self.fields: list[Field] = []
        superblock = self._files.image.superblock
        self.fields += fields_of(ondisk.SuperBlockRecord, SUPERBLOCK_AT, "superblock")
        if superblock.metabox_nid:
            at = SUPERBLOCK_AT + ondisk.SUPER_BLOCK.size_bytes
            self.fields += fields_of(ondisk.SuperBlockExtSlot1Record, at, "superblock")
        for number in range(superblock.device_count):
            at = superblock.device_table_address + number * ondisk.EROFS_DEVT_SLOT_SIZE
            self.fields += fields_of(ondisk.DeviceSlotRecord, at, "device")
        if superblock.compression_algorithms:
            # the configurations behind the superblock and its slots: a length before each
            self.fields += numbered("configurations", SUPERBLOCK_AT + 128 + 16, 2, 8)
            self.fields += numbered("configurations", SUPERBLOCK_AT + 128, 2, 8)
        self._walk()
        self.fields = [field for field in self.fields if field.offset + field.width <= self._size]

    def _walk(self) -> None:
        files = self._files
        pending = [files.image.root_nid]
        internal = (files.image.superblock.packed_nid, files.image.superblock.metabox_nid)
        pending += [Nid(nid) for nid in internal if nid]
        seen: set[Nid] = set()
        while pending:
            nid = pending.pop()
            if nid in seen:
                continue
            seen.add(nid)
            inode = files.run(files.image.inode(nid))
            if not inode.in_metabox:
                self._inode(inode)
            if inode.is_directory:
                self._directory(inode)
                pending += [child for _, child, _ in files.entries(inode)]

    def _take(self, kind: str) -> bool:
        self._taken[kind] = self._taken.get(kind, 0) + 1
        return self._taken[kind] <= PER_KIND

    def _inode(self, inode: Inode) -> None:
        address = inode_address(self._files.image.superblock, inode.nid)
        extended = self._files.devices[0][address] & 1
        record = ondisk.InodeExtendedRecord if extended else ondisk.InodeCompactRecord
        kind = f"inode-{extended}-{inode.layout}-{inode.mode >> 12:o}"
        if self._take(kind):
            self.fields += fields_of(record, address, kind)
        if inode.xattr_bytes and self._take("xattrs"):
            at = inode.xattr_address
            self.fields += fields_of(ondisk.XattrIbodyHeaderRecord, at, "xattrs")
            at += ondisk.XATTR_IBODY_HEADER.size_bytes
            self.fields += numbered("shared", at, 4, self._files.devices[0][at - 8])
            at += 4 * self._files.devices[0][at - 8]
            if at < inode.tail_address:
                self.fields += fields_of(ondisk.XattrEntryRecord, at, "xattr")
        if not inode.size_bytes or inode.is_special:
            return
        if inode.is_compressed and self._take(f"map-{inode.layout}"):
            at = header_address(inode)
            self.fields += fields_of(ondisk.MapHeaderRecord, at, "map")
            self.fields += fields_of(ondisk.LclusterIndexRecord, at + 16, "lcluster")
            self.fields += fields_of(ondisk.ExtentRecord, -(-(at + 8) // 32) * 32, "extent")
            self.fields += numbered("index", at + 8, 4, 12)
        elif inode.layout == ondisk.EROFS_INODE_CHUNK_BASED and self._take("chunks"):
            at = -(-inode.tail_address // 8) * 8
            self.fields += fields_of(ondisk.InodeChunkIndexRecord, at, "chunk")
            self.fields += numbered("block-map", inode.tail_address, 4, 4)

    def _directory(self, inode: Inode) -> None:
        runs = self._files.run(self._files.image.extents(inode, 0, inode.size_bytes))
        for run in runs:
            if isinstance(run, Extent) and not run.device and self._take("directory"):
                for number in range(min(4, run.length // ondisk.DIRENT.size_bytes)):
                    at = run.address + number * ondisk.DIRENT.size_bytes
                    self.fields += fields_of(ondisk.DirentRecord, at, "dirent")


class Change(NamedTuple):
    """Other bytes in some places of an image."""

    what: str
    places: tuple[tuple[int, bytes], ...]

    def of(self, sound: bytes) -> bytes:
        """The changed image, with a good checksum: what is behind that is to be tried."""
        image = bytearray(sound)
        for offset, data in self.places:
            image[offset : offset + len(data)] = data
        return sealed(image)


def one_field_changes(devices: list[bytes]) -> Iterator[Change]:
    """Each field of the table with each number that it should not have, and with its neighbour."""
    sound = devices[0]
    fields = FieldTable(devices).fields
    for name, offset, width in fields:
        old = int.from_bytes(sound[offset : offset + width], "little")
        top = 1 << 8 * width
        new = {0, 1, top - 1, top // 2, (old + 1) % top, (old - 1) % top}
        new.add(int.from_bytes(sound[offset : offset + width], "big"))
        for number in sorted(new - {old}):
            what = f"{name} at {offset}: {old:#x} becomes {number:#x}"
            yield Change(what, ((offset, number.to_bytes(width, "little")),))
    for first, second in itertools.pairwise(fields):
        if first.width == second.width:
            one, two = (sound[at : at + width] for _, at, width in (first, second))
            what = f"{first.name} at {first.offset} and {second.name} swapped"
            yield Change(what, ((first.offset, two), (second.offset, one)))


def one_bit_changes(devices: list[bytes]) -> Iterator[Change]:
    """Each bit of each field."""
    for name, offset, width in FieldTable(devices).fields:
        for bit in range(8 * width):
            at = offset + bit // 8
            what = f"{name} at {offset}: bit {bit} flipped"
            yield Change(what, ((at, bytes([devices[0][at] ^ 1 << bit % 8])),))


@cache
def all_changes(name: str) -> tuple[Change, ...]:
    """Both kinds, of a golden image."""
    devices = golden_devices(name)
    return (*one_field_changes(devices), *one_bit_changes(devices))


def some_changes(name: str, count: int | None) -> Sequence[Change]:
    """A sample that is the same each time, with another one for each image; None: all."""
    changes = all_changes(name)
    if count is None or count >= len(changes):
        return changes
    return random.Random(f"{name} {count}").sample(changes, count)

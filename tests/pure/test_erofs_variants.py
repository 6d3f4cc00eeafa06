"""Forms of the format that mkfs.erofs knows but never writes, made from golden images."""

import struct

import pytest

from lazyfs.erofs import ondisk
from lazyfs.erofs.compressed.lclusters import NONHEAD
from lazyfs.erofs.image import Encoded, Extent, Hole, Inode
from tests.support.erofs_files import ImageFiles, golden_devices, sealed

PATH = b"data/mixed"


def chunk_entries(name: str) -> tuple[bytearray, Inode, int]:
    """An image, the inode of PATH, and where its chunk map begins."""
    image = bytearray(golden_devices(name)[0])
    inode = ImageFiles([bytes(image)]).inode_at(PATH)
    assert inode.layout == ondisk.EROFS_INODE_CHUNK_BASED
    unit = 8 if inode.data & ondisk.EROFS_CHUNK_FORMAT_INDEXES else 4
    return image, inode, -(-inode.tail_address // unit) * unit


def first_run(image: bytearray, inode: Inode) -> object:
    files = ImageFiles([sealed(image)])
    return files.run(files.image.extents(files.run(files.image.inode(inode.nid)), 0, 1))[0]


@pytest.mark.parametrize("wide", [True, False])
def test_chunk_addresses_over_32_bits(wide: bool) -> None:
    image, inode, entry = chunk_entries("chunk-indexes")
    chunk_format = inode.data | (ondisk.EROFS_CHUNK_FORMAT_48BIT if wide else 0)
    address = ImageFiles([bytes(image)]).image.superblock.meta_address
    struct.pack_into("<H", image, address + inode.nid * 32 + 0x10, chunk_format)
    struct.pack_into("<HHI", image, entry, 5, 0, 77)
    run = first_run(image, inode)
    assert isinstance(run, Extent)
    assert run.address == (77 | (5 << 32 if wide else 0)) * 4096


@pytest.mark.parametrize(
    ("wide", "high", "low", "hole"),
    [
        (False, 0, 0xFFFFFFFF, True),
        (False, 0xFFFF, 0xFFFFFFFF, True),
        (True, 0xFFFF, 0xFFFFFFFF, True),
        (True, 0, 0xFFFFFFFF, False),
    ],
)
def test_chunks_that_are_holes(wide: bool, high: int, low: int, hole: bool) -> None:
    image, inode, entry = chunk_entries("chunk-indexes")
    chunk_format = inode.data | (ondisk.EROFS_CHUNK_FORMAT_48BIT if wide else 0)
    address = ImageFiles([bytes(image)]).image.superblock.meta_address
    struct.pack_into("<H", image, address + inode.nid * 32 + 0x10, chunk_format)
    struct.pack_into("<HHI", image, entry, high, 0, low)
    assert isinstance(first_run(image, inode), Hole) == hole


def test_device_ids_are_masked() -> None:
    devices = golden_devices("device")
    image = bytearray(devices[0])
    files = ImageFiles(devices)
    inode = files.inode_at(PATH)
    entry = -(-inode.tail_address // 8) * 8
    high, device_id, low = struct.unpack_from("<HHI", image, entry)
    assert device_id == 1
    struct.pack_into("<HHI", image, entry, high, 0x8001, low)
    changed = ImageFiles([sealed(image), devices[1]])
    assert changed.content(inode) == files.content(inode)


def test_unified_addresses_reach_the_extra_device() -> None:
    devices = golden_devices("device")
    image = bytearray(devices[0])
    files = ImageFiles(devices)
    inode = files.inode_at(PATH)
    unified = files.image.devices[0].unified_address >> 12
    assert unified
    entry = -(-inode.tail_address // 8) * 8
    for number in range(-(-inode.size_bytes // 4096)):
        at = entry + 8 * number
        high, device_id, low = struct.unpack_from("<HHI", image, at)
        if device_id:
            struct.pack_into("<HHI", image, at, high, 0, low + unified)
    changed = ImageFiles([sealed(image), devices[1]])
    assert changed.content(inode) == files.content(inode)
    flat = ImageFiles([sealed(image) + devices[1]], flat=True)
    assert len(image) == unified << 12
    assert flat.content(inode) == files.content(inode)


def test_the_second_algorithm_of_a_file() -> None:
    image = bytearray(golden_devices("lz4-full-index")[0])
    files = ImageFiles([bytes(image)])
    inode = files.inode_at(PATH)
    header = -(-inode.tail_address // 8) * 8
    advise = struct.unpack_from("<H", image, header + 4)[0]
    struct.pack_into("<HB", image, header + 4, advise | 4, ondisk.Z_EROFS_COMPRESSION_ZSTD)
    for number in range(-(-inode.size_bytes // 4096)):
        at = header + 16 + 8 * number
        (kind,) = struct.unpack_from("<H", image, at)
        if kind == ondisk.Z_EROFS_LCLUSTER_TYPE_HEAD1:
            struct.pack_into("<H", image, at, ondisk.Z_EROFS_LCLUSTER_TYPE_HEAD2)
    changed = ImageFiles([sealed(image)])
    assert changed.content(inode) == files.content(inode)


def test_a_record_without_its_distance_ahead() -> None:
    """Writers before 1.0 left it 0, which then means 1."""
    image = bytearray(golden_devices("lz4-full-index")[0])
    files = ImageFiles([bytes(image)])
    inode = files.inode_at(b"size/text")
    header = -(-inode.tail_address // 8) * 8
    changed_records = 0
    for number in range(-(-inode.size_bytes // 4096)):
        at = header + 16 + 8 * number
        if struct.unpack_from("<H", image, at)[0] == NONHEAD:
            struct.pack_into("<H", image, at + 6, 0)
            changed_records += 1
    assert changed_records
    changed = ImageFiles([sealed(image)])
    assert changed.content(inode) == files.content(inode)


def test_extents_without_a_stored_length_are_holes() -> None:
    image = bytearray(golden_devices("48bit-fragments")[0])
    files = ImageFiles([bytes(image)])
    inode = files.inode_at(PATH)
    runs = files.run(files.image.extents(inode, 0, 1 << 20))
    assert isinstance(runs[0], Encoded)
    records = -(-(-(-inode.tail_address // 8) * 8 + 8) // 16) * 16
    struct.pack_into("<I", image, records, 0)
    changed = ImageFiles([sealed(image)])
    length = runs[0].length
    content = files.content(inode)
    assert changed.content(inode) == bytes(length) + content[length:]
    struct.pack_into("<I", image, records + 12, 100)  # and no record for the start: also a hole
    changed = ImageFiles([sealed(image)])
    assert changed.content(inode) == bytes(length) + content[length:]


def test_metadata_before_the_metadata_block() -> None:
    """A metadata zone may have its inodes at negative distances."""
    image = bytearray(golden_devices("plain-2k")[0])
    files = ImageFiles([bytes(image)])
    root_address = files.image.superblock.meta_address + files.image.root_nid * 32
    blocks = 64
    nid = root_address // 32 + blocks * 2048 // 32
    assert nid < 1 << 16
    struct.pack_into("<i", image, 1024 + 0x28, -blocks)
    struct.pack_into("<H", image, 1024 + 0x0E, nid)
    changed = ImageFiles([sealed(image)])
    root = changed.run(changed.image.inode(changed.image.root_nid))
    assert root.tail_address == files.run(files.image.inode(files.image.root_nid)).tail_address

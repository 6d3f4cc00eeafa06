"""Images that break the format, one rule each, and the error that each one is."""

import stat
import struct

import pytest

from lazyfs.erofs import limits, ondisk
from lazyfs.erofs.crc32c import crc32c
from lazyfs.erofs.inode import Inode
from lazyfs.errors import (
    ImageFormatError,
    LazyfsError,
    NotADirectoryNodeError,
    NotAFileNodeError,
    NotASymlinkNodeError,
    TruncatedRecordError,
    UnsupportedFeatureError,
)
from lazyfs.model import Nid
from tests.support.erofs_files import ImageFiles, golden_devices, sealed

SUPER = ondisk.EROFS_SUPER_OFFSET


class Patched:
    """A golden image to be broken; the superblock's checksum is made right again."""

    def __init__(self, name: str) -> None:
        self.sound = ImageFiles(golden_devices(name))
        self.devices = [bytearray(device) for device in self.sound.devices]

    def put(self, offset: int, form: str, *values: int | bytes) -> "Patched":
        struct.pack_into("<" + form, self.devices[0], offset, *values)
        return self

    def flip(self, offset: int, bits: int) -> "Patched":
        self.devices[0][offset] ^= bits
        return self

    def address(self, nid: Nid) -> int:
        return self.sound.image.superblock.meta_address + nid * ondisk.EROFS_ISLOT_SIZE

    def inode(self, path: bytes) -> Inode:
        return self.sound.inode_at(path)

    def open(self) -> ImageFiles:
        image, *others = self.devices
        return ImageFiles([sealed(image), *(bytes(device) for device in others)])


def test_the_crc_is_castagnoli() -> None:
    assert crc32c(b"123456789") ^ 0xFFFFFFFF == 0xE3069283
    assert crc32c(b"") == 0xFFFFFFFF


# --- superblock ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "form", "value", "error", "word"),
    [
        (0x00, "I", 0xE0F5E1E3, ImageFormatError, "magic"),
        (0x0C, "B", 8, UnsupportedFeatureError, "blocks"),
        (0x0C, "B", 17, UnsupportedFeatureError, "blocks"),
        (0x20, "I", 1_000_000_000, ImageFormatError, "fixed_nsec"),
        (0x50, "I", 0x200, UnsupportedFeatureError, "0x200"),
        (0x5A, "B", 1, UnsupportedFeatureError, "directory blocks"),
        (0x60, "Q", 1 << 63 | 5, ImageFormatError, "packed"),
        (0x50, "I", ondisk.EROFS_FEATURE_INCOMPAT_METABOX, ImageFormatError, "metabox"),
    ],
)
def test_a_superblock_that_cannot_be(
    offset: int, form: str, value: int, error: type[LazyfsError], word: str
) -> None:
    image = Patched("plain-512").put(SUPER + offset, form, value)
    with pytest.raises(error, match=word):
        image.open()


def test_a_metabox_inside_itself() -> None:
    image = Patched("metabox").put(SUPER + 0x80, "Q", 1 << 63 | 1)
    with pytest.raises(ImageFormatError, match="metabox"):
        image.open()


def test_unknown_compression_algorithms() -> None:
    image = Patched("zstd").put(SUPER + 0x54, "H", 0x10)
    with pytest.raises(UnsupportedFeatureError, match="algorithms"):
        image.open()


def test_a_wrong_checksum() -> None:
    device = bytearray(golden_devices("plain-512")[0])
    device[SUPER + 0x40] ^= 1
    with pytest.raises(ImageFormatError, match="checksum"):
        ImageFiles([bytes(device)])


@pytest.mark.parametrize("length", [0, 1023, 1024, 1100, 1535])
def test_a_truncated_image(length: int) -> None:
    with pytest.raises(TruncatedRecordError):
        ImageFiles([golden_devices("plain-512")[0][:length]])


def test_too_many_devices() -> None:
    image = Patched("device").put(SUPER + 0x56, "H", limits.MAX_EXTRA_DEVICES + 1)
    with pytest.raises(UnsupportedFeatureError, match="devices"):
        image.open()


def test_devices_that_overlap() -> None:
    image = Patched("device")
    table = image.sound.image.superblock.device_table_address
    for slot in (0, 1):
        image.put(table + slot * 128 + 0x40, "II", 10, 1000 + 9 * slot)
    image.put(SUPER + 0x56, "H", 2)
    with pytest.raises(ImageFormatError, match="overlap"):
        image.open()


def test_data_on_a_device_that_the_table_lacks() -> None:
    image = Patched("device")
    inode = image.inode(b"data/dup1")
    image.put(inode.tail_address + 7 & ~7, "HHI", 0, 3, 0)
    image.put(SUPER + 0x56, "H", 2)
    table = image.sound.image.superblock.device_table_address
    image.put(table + 128 + 0x40, "II", 0, 0)
    files = image.open()
    with pytest.raises(ImageFormatError, match="device 3"):
        files.content(files.inode_at(b"data/dup1"))


# --- inodes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "form", "value", "error"),
    [
        (0x00, "H", 0x20, UnsupportedFeatureError),
        (0x00, "H", 5 << 1, UnsupportedFeatureError),
        (0x00, "H", 0x8001, UnsupportedFeatureError),
        (0x04, "H", 0, ImageFormatError),
        (0x04, "H", 0o150000, ImageFormatError),
        (0x08, "Q", 1 << 63, ImageFormatError),
        (0x28, "I", 1_000_000_000, ImageFormatError),
    ],
)
def test_an_inode_that_cannot_be(
    offset: int, form: str, value: int, error: type[LazyfsError]
) -> None:
    image = Patched("plain-2k")  # has extended inodes
    nid = image.inode(b"size/text").nid
    files = image.put(image.address(nid) + offset, form, value).open()
    with pytest.raises(error, match=f"nid {nid:#x}"):
        files.run(files.image.inode(nid))


@pytest.mark.parametrize("nid", [1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_a_nid_outside_the_image(nid: int) -> None:
    files = ImageFiles(golden_devices("plain-512"))
    with pytest.raises(ImageFormatError):
        files.run(files.image.inode(Nid(nid)))


def test_a_nid_behind_the_metabox() -> None:
    files = ImageFiles(golden_devices("metabox"))
    for nid in (1 << 63 | 1 << 30, (1 << 64) - 1):
        with pytest.raises(ImageFormatError):
            files.run(files.image.inode(Nid(nid)))


def test_unknown_chunk_formats() -> None:
    image = Patched("block-map")
    nid = image.inode(b"data/dup1").nid
    files = image.put(image.address(nid) + 0x10, "H", 0x80).open()
    with pytest.raises(UnsupportedFeatureError, match="chunk format"):
        files.run(files.image.inode(nid))


def test_operations_on_the_wrong_type() -> None:
    files = ImageFiles(golden_devices("plain-512"))
    root = files.run(files.image.inode(files.image.root_nid))
    fifo = files.inode_at(b"fifo")
    assert stat.S_ISFIFO(fifo.mode)
    for inode in (root, fifo, files.inode_at(b"short")):
        with pytest.raises(NotAFileNodeError):
            files.run(files.image.read(inode, 0, 1))
    for inode in (files.inode_at(b"owner"), fifo):
        with pytest.raises(NotADirectoryNodeError):
            files.run(files.image.lookup(inode, b"x"))
        with pytest.raises(NotADirectoryNodeError):
            files.run(files.image.entries(inode, 0))
        with pytest.raises(NotASymlinkNodeError):
            files.run(files.image.link_target(inode))
    assert files.run(files.image.extents(fifo, 0, 100)) == []


# --- symlinks and data --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, limits.MAX_LINK_BYTES + 1, 1 << 40])
def test_a_link_of_that_size(size: int) -> None:
    image = Patched("plain-2k")
    inode = image.inode(b"short")
    files = image.put(image.address(inode.nid) + 8, "Q", size).open()
    with pytest.raises(ImageFormatError, match="link"):
        files.run(files.image.link_target(files.run(files.image.inode(inode.nid))))


def test_a_link_with_a_nul() -> None:
    image = Patched("plain-2k")
    inode = image.inode(b"short")
    files = image.put(inode.tail_address + 1, "B", 0).open()
    with pytest.raises(ImageFormatError, match="NUL"):
        files.run(files.image.link_target(files.run(files.image.inode(inode.nid))))


def test_inline_data_that_crosses_a_block() -> None:
    image = Patched("plain-2k")
    inode = image.inode(b"owner")
    files = image.put(image.address(inode.nid) + 8, "Q", 2048).open()
    with pytest.raises(ImageFormatError, match="crosses"):
        files.content(files.run(files.image.inode(inode.nid)))


@pytest.mark.parametrize("block", [1 << 20, 1 << 31])
def test_data_behind_the_end_of_the_device(block: int) -> None:
    image = Patched("plain-2k")
    inode = image.inode(b"size/4096")
    files = image.put(image.address(inode.nid) + 0x10, "I", block).open()
    with pytest.raises(TruncatedRecordError):
        files.content(files.run(files.image.inode(inode.nid)))


def test_data_at_no_address() -> None:
    image = Patched("plain-2k")
    inode = image.inode(b"size/4096")
    files = image.put(image.address(inode.nid) + 8, "Q", (1 << 63) - 5000).open()
    broken = files.run(files.image.inode(inode.nid))
    with pytest.raises(ImageFormatError, match="bytes at"):
        files.run(files.image.read(broken, 0, 1))


# --- directories --------------------------------------------------------------------------------


class OneBlock:
    """A directory of one block whose dirents can be changed."""

    def __init__(self) -> None:
        self.image = Patched("plain-2k")
        self.nid = self.image.inode(b"data").nid
        inode = self.image.inode(b"data")
        assert inode.size_bytes < 2048
        assert inode.layout == ondisk.EROFS_INODE_FLAT_INLINE
        self.start = inode.tail_address
        self.size = inode.size_bytes

    def dirent(self, index: int, offset: int, form: str, value: int | bytes) -> "OneBlock":
        self.image.put(self.start + index * 12 + offset, form, value)
        return self

    def name(self, index: int, value: bytes) -> "OneBlock":
        (start,) = struct.unpack_from("<H", self.image.devices[0], self.start + index * 12 + 8)
        self.image.put(self.start + start, f"{len(value)}s", value)
        return self

    def check(self, word: str) -> None:
        files = self.image.open()
        inode = files.run(files.image.inode(self.nid))
        with pytest.raises(ImageFormatError, match=word):
            list(files.entries(inode))


def test_the_order_of_the_sample_directory() -> None:
    files = OneBlock().image.open()
    names = [name for name, _, _ in files.entries(files.inode_at(b"data"))]
    assert names == [b"dup1", b"dup2", b"mixed", b"near", b"noise"]  # behind "." and ".."


@pytest.mark.parametrize("nameoff", [0, 1, 11, 12 * 7 + 1, 2048, 0xFFFF])
def test_a_first_name_offset(nameoff: int) -> None:
    OneBlock().dirent(0, 8, "H", nameoff).check("entry 0")


@pytest.mark.parametrize("nameoff", [0, 3, 84, 0xFFFF])
def test_a_name_offset_that_goes_back_or_out(nameoff: int) -> None:
    OneBlock().dirent(3, 8, "H", nameoff).check("entry [23]: name")


def test_names_that_break_the_rules() -> None:
    OneBlock().name(3, b"du/2").check("'du/2'")
    OneBlock().name(3, b"du\0\x32").check("name")
    OneBlock().name(3, b"dup1").check("behind")  # twice the same
    OneBlock().name(3, b"dup0").check("behind")  # out of order
    OneBlock().name(6, b"\0").check("entry 6")  # empty


def test_dots_that_are_not_the_directory_and_a_directory() -> None:
    OneBlock().dirent(0, 0, "Q", 1).check(r"'\.'")
    OneBlock().dirent(0, 10, "B", ondisk.EROFS_FT_REG_FILE).check(r"'\.'")
    OneBlock().dirent(1, 10, "B", ondisk.EROFS_FT_SYMLINK).check(r"'\.\.'")


def test_an_unknown_file_type() -> None:
    OneBlock().dirent(2, 10, "B", ondisk.EROFS_FT_MAX).check("file type")


def test_blocks_out_of_order() -> None:
    image = Patched("plain-512")
    inode = image.inode(b"many")
    assert inode.layout in (ondisk.EROFS_INODE_FLAT_PLAIN, ondisk.EROFS_INODE_FLAT_INLINE)
    start = inode.data * 512
    first = bytes(image.devices[0][start + 512 : start + 1024])
    image.put(start + 1024, "512s", first)
    files = image.open()
    with pytest.raises(ImageFormatError, match="behind"):
        list(files.entries(files.run(files.image.inode(inode.nid))))


def test_a_directory_of_zeros() -> None:
    image = Patched("plain-2k")
    inode = image.inode(b"many")
    image.put(image.address(inode.nid), "H", 1)  # extended, flat plain
    files = image.put(image.address(inode.nid) + 0x10, "I", 0xFFFFFFFF).open()
    image.put(image.address(inode.nid) + 6, "H", 0xFFFF)
    files = image.put(image.address(inode.nid) + 8, "Q", 1 << 60).open()
    broken = files.run(files.image.inode(inode.nid))
    assert broken.data == -1
    with pytest.raises(ImageFormatError, match="nameoff 0"):
        files.run(files.image.lookup(broken, b"x"))
    assert files.needs < 100


def test_a_directory_without_a_parent() -> None:
    directory = OneBlock()
    files = directory.name(1, b".-").image.open()
    with pytest.raises(ImageFormatError, match=r"'\.\.'"):
        files.run(files.image.parent_nid(files.run(files.image.inode(directory.nid))))


# --- xattrs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "offset", "form", "value"),
    [
        ("shared xattrs", 4, "B", 255),
        ("ends at", 12, "B", 255),
        ("ends at", 14, "H", 0xFFFF),
    ],
)
def test_xattrs_that_cannot_be(word: str, offset: int, form: str, value: int) -> None:
    image = Patched("plain-2k")
    inode = image.inode(b"size/1")
    files = image.put(inode.xattr_address + offset, form, value).open()
    with pytest.raises(ImageFormatError, match=word):
        files.run(files.image.xattrs(inode))


def test_a_name_with_a_nul() -> None:
    image = Patched("plain-2k")
    inode = image.inode(b"size/1")
    files = image.put(inode.xattr_address + 12 + 4 + 2, "B", 0).open()
    with pytest.raises(ImageFormatError, match="xattr name"):
        files.run(files.image.xattrs(inode))


def test_an_xattr_area_of_only_a_header() -> None:
    image = Patched("plain-2k")
    nid = image.inode(b"size/1").nid
    files = image.put(image.address(nid) + 2, "H", 1).open()
    with pytest.raises(UnsupportedFeatureError, match="header"):
        files.run(files.image.xattrs(files.run(files.image.inode(nid))))


def test_a_long_prefix_that_is_not_in_the_table() -> None:
    image = Patched("plain-2k")
    inode = image.inode(b"size/1")
    files = image.put(inode.xattr_address + 13, "B", 0x80 | 9).open()
    with pytest.raises(ImageFormatError, match="long xattr prefix 9"):
        files.run(files.image.xattrs(inode))


def test_private_xattrs_are_not_shown() -> None:
    image = Patched("plain-2k")
    inode = image.inode(b"size/1")
    for index in (0, ondisk.EROFS_XATTR_INDEX_LUSTRE, 99):
        files = image.put(inode.xattr_address + 13, "B", index).open()
        assert files.run(files.image.xattrs(inode)) == {}


def test_shared_xattrs_are_bounded() -> None:
    image = Patched("plain-2k")
    inode = image.inode(b"size/text")
    # 255 times the same shared attribute of 64 KiB: the area begins at block 0
    image.put(SUPER + 0x2C, "I", 0)
    image.put(4, "BBH", 1, 1, 0xFFFF)
    image.put(image.address(inode.nid) + 2, "H", 1 + 255)
    image.put(inode.xattr_address + 4, "B", 255)
    for number in range(255):
        image.put(inode.xattr_address + 12 + 4 * number, "I", 1)
    files = image.open()
    broken = files.run(files.image.inode(inode.nid))
    with pytest.raises(ImageFormatError, match="bytes of xattrs"):
        files.run(files.image.xattrs(broken))


# --- compressed data ----------------------------------------------------------------------------


def header_of(inode: Inode) -> int:
    return -(-inode.tail_address // 8) * 8


def check_content(image: Patched, inode: Inode, word: str) -> None:
    files = image.open()
    with pytest.raises(ImageFormatError, match=word):
        files.content(files.run(files.image.inode(inode.nid)))


def test_an_algorithm_that_the_superblock_does_not_announce() -> None:
    image = Patched("zstd")
    inode = image.inode(b"size/text")
    image.put(header_of(inode) + 6, "B", ondisk.Z_EROFS_COMPRESSION_LZMA)
    check_content(image, inode, "algorithm 1")


def test_big_pclusters_of_one_head_only() -> None:
    image = Patched("lz4-big")
    inode = image.inode(b"size/text")
    image.flip(header_of(inode) + 4, ondisk.Z_EROFS_ADVISE_BIG_PCLUSTER_2)
    check_content(image, inode, "big pclusters")


def test_clusters_that_never_find_their_head() -> None:
    image = Patched("lz4-full-index")
    inode = image.inode(b"size/text")
    index = header_of(inode) + 16
    count = -(-inode.size_bytes // 4096)
    for number in range(count):
        image.put(index + 8 * number, "HHHH", ondisk.Z_EROFS_LCLUSTER_TYPE_NONHEAD, 0, 1, 1)
    check_content(image, inode, "HEAD")
    for number in range(count):
        image.put(index + 8 * number, "HHHH", ondisk.Z_EROFS_LCLUSTER_TYPE_NONHEAD, 0, 0, 0)
    check_content(image, inode, "HEAD")


def test_an_extent_beyond_the_largest() -> None:
    image = Patched("lz4-full-index")
    inode = image.inode(b"size/text")
    index = header_of(inode) + 16
    image.put(image.address(inode.nid) + 8, "I", 1 << 31)
    back = ondisk.Z_EROFS_LI_D0_CBLKCNT | 1
    image.put(index + 8, "HHHH", ondisk.Z_EROFS_LCLUSTER_TYPE_NONHEAD, 0, back, 4000)
    check_content(image, inode, "more than 12582912 bytes")


@pytest.mark.parametrize("name", ["lz4", "lz4-big", "zstd", "deflate", "lzma", "tailpacking"])
def test_broken_pclusters_are_format_errors_or_other_bytes(name: str) -> None:
    image = Patched(name)
    inode = image.inode(b"size/text")
    runs = image.sound.run(image.sound.image.extents(inode, 0, 1 << 20))
    sound = image.sound.content(inode)
    failed = 0
    for run in runs:
        address = run.address  # type: ignore[union-attr]
        for skip in range(0, 90, 7):
            image.flip(address + skip, 0x55)
            files = image.open()
            try:
                content = files.content(inode)
            except ImageFormatError:
                failed += 1
            else:
                assert len(content) == len(sound)
            image.flip(address + skip, 0x55)
    assert failed
    assert image.open().content(inode) == sound


def test_a_fragment_of_the_packed_inode_itself() -> None:
    image = Patched("all-fragments-dedupe")
    packed = image.sound.image.superblock.packed_nid
    inode = image.sound.run(image.sound.image.inode(packed))
    image.put(header_of(inode), "Q", 1 << 63)
    check_content(image, inode, "has a fragment itself")


def test_a_fragment_behind_the_packed_inode() -> None:
    image = Patched("all-fragments-dedupe")
    inode = image.inode(b"size/text")
    image.put(header_of(inode), "Q", 1 << 63 | 1 << 40)
    check_content(image, inode, "behind the end")


def test_fragments_without_a_packed_inode() -> None:
    image = Patched("all-fragments-dedupe").put(SUPER + 0x60, "Q", 0)
    check_content(image, image.inode(b"size/text"), "packed inode")


def test_a_packed_inode_that_is_a_directory() -> None:
    image = Patched("all-fragments-dedupe")
    image.put(SUPER + 0x60, "Q", image.sound.image.root_nid)
    check_content(image, image.inode(b"size/text"), "internal nid")


@pytest.mark.parametrize(
    ("number", "start", "word"),
    [(1, 1 << 30, "extent 1 at 1073741824, behind"), (4, 1, "extent 4 at 1, before")],
)
def test_encoded_extents_out_of_order(number: int, start: int, word: str) -> None:
    image = Patched("48bit-fragments")
    inode = image.inode(b"data/mixed")
    records = -(-(header_of(inode) + 8) // 16) * 16
    (count,) = struct.unpack_from("<I", image.devices[0], header_of(inode))
    assert count == 5
    image.put(records + 16 * number + 12, "I", start)
    check_content(image, inode, word)


def test_more_extents_than_a_read_may_touch() -> None:
    image = Patched("48bit-fragments")
    inode = image.inode(b"data/mixed")
    records = -(-(header_of(inode) + 8) // 16) * 16
    count = limits.MAX_RUNS_PER_READ + 100
    image.put(header_of(inode), "I", count)
    image.devices[0] += bytes(16 * count)
    for number in range(count):
        image.put(records + 16 * number, "IIII", 1, 0, 0, number)
    check_content(image, inode, "runs in a read")

"""Golden images of every feature against what the kernel's EROFS shows of them."""

import pytest

from lazyfs.erofs.image import Encoded, Extent, Fragment, Hole
from lazyfs.errors import NoSuchEntryError
from tests.support.erofs_files import ImageFiles, golden_devices, golden_facts, golden_names

EXPECTED = golden_facts()


@pytest.mark.parametrize("name", golden_names())
def test_everything_is_as_the_kernel_shows_it(name: str) -> None:
    found = ImageFiles(golden_devices(name)).facts()
    assert found.keys() == EXPECTED[name].keys()
    for path, facts in EXPECTED[name].items():
        assert found[path] == facts, path


def test_a_flat_image_holds_its_devices_itself() -> None:
    image, tar = golden_devices("tar-index")
    found = ImageFiles([image + tar], flat=True).facts()
    assert found == EXPECTED["tar-index"]


@pytest.mark.parametrize("name", golden_names())
def test_reads_of_any_range_are_that_range(name: str) -> None:
    files = ImageFiles(golden_devices(name))
    for path in (b"data/mixed", b"sparse", b"size/zeros", b"size/4097"):
        inode = files.inode_at(path)
        whole = files.content(inode)
        assert len(whole) == inode.size_bytes
        for offset in (0, 1, 511, 4095, 4096, 8193, inode.size_bytes - 1, inode.size_bytes):
            for length in (0, 1, 4096, 16385):
                got = files.run(files.image.read(inode, offset, length))
                assert got == whole[offset : offset + length], (path, offset, length)
        assert files.run(files.image.read(inode, inode.size_bytes + 7, 100)) == b""


@pytest.mark.parametrize("name", golden_names())
def test_extents_cover_a_file_without_gaps(name: str) -> None:
    files = ImageFiles(golden_devices(name))
    for path in (b"data/mixed", b"sparse", b"size/zeros", b"data/near"):
        inode = files.inode_at(path)
        end = 0
        while runs := files.run(files.image.extents(inode, end, 1 << 30)):
            for run in runs:
                assert run.offset == end
                end += run.length
        assert end == inode.size_bytes


@pytest.mark.parametrize(
    ("name", "path", "kinds"),
    [
        ("fragments", b"data/mixed", {Encoded, Extent, Fragment}),
        ("48bit-fragments", b"data/mixed", {Encoded, Extent, Fragment}),
        ("tailpacking", b"data/mixed", {Encoded, Extent}),
        ("all-fragments-dedupe", b"size/text", {Fragment}),
        ("48bit-chunks", b"sparse", {Extent, Hole}),
        ("plain-512", b"size/text", {Extent}),
    ],
)
def test_the_kinds_of_extents(name: str, path: bytes, kinds: set[type]) -> None:
    files = ImageFiles(golden_devices(name))
    runs = files.run(files.image.extents(files.inode_at(path), 0, 1 << 30))
    assert {type(run) for run in runs} == kinds


def test_holes_need_no_bytes() -> None:
    files = ImageFiles(golden_devices("chunk-indexes"))
    inode = files.inode_at(b"sparse")
    files.run(files.image.read(inode, 0, 1))
    before = files.needed_bytes
    assert files.run(files.image.read(inode, 0, 4096)) == bytes(4096)
    assert files.needed_bytes - before <= 8  # the chunk index


def test_neighbouring_chunks_are_one_need() -> None:
    files = ImageFiles(golden_devices("block-map"))
    inode = files.inode_at(b"data/dup1")
    assert inode.size_bytes > 4 * 4096
    before = files.needs
    assert len(files.run(files.image.read(inode, 0, 65536))) == inode.size_bytes
    assert files.needs - before == 1 + 1  # the block map and the data


def test_a_pcluster_is_decompressed_once() -> None:
    files = ImageFiles(golden_devices("zstd"))
    inode = files.inode_at(b"size/text")
    assert len(files.content(inode, piece=512)) == 60000
    runs = files.run(files.image.extents(inode, 0, 60000))
    assert len(files.derived) == sum(isinstance(run, Encoded) for run in runs)


@pytest.mark.parametrize("name", ["plain-512", "directories", "metabox"])
def test_names_that_are_not_there(name: str) -> None:
    files = ImageFiles(golden_devices(name))
    many = files.inode_at(b"many")
    for absent in (b"", b"!", b"zzz", b"160", b"160 a name of middling lengtH", b"n" * 300):
        with pytest.raises(NoSuchEntryError):
            files.run(files.image.lookup(many, absent))


def test_a_listing_goes_on_from_any_entry() -> None:
    files = ImageFiles(golden_devices("plain-512"))
    many = files.inode_at(b"many")
    entries = []
    position = 0
    while found := files.run(files.image.entries(many, position)):
        entries += found
        position = found[-1].next_position
    assert len(entries) == 322
    for number, entry in enumerate(entries[:-1]):
        following = files.run(files.image.entries(many, entry.next_position))
        assert following[0] == entries[number + 1]
    assert files.run(files.image.entries(many, entries[-1].next_position)) == []
    for odd_position in range(0, many.size_bytes, 7):  # as from a wild seekdir
        found = files.run(files.image.entries(many, odd_position))
        assert not found or found[0] in entries


def test_a_lookup_reads_few_blocks() -> None:
    files = ImageFiles(golden_devices("plain-512"))
    many = files.inode_at(b"many")
    blocks = many.size_bytes // 512
    assert blocks > 20
    before = files.needs
    files.run(files.image.lookup(many, b"200 a name of middling length"))
    assert files.needs - before <= blocks.bit_length() + 1

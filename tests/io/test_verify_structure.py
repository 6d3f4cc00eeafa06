"""Every kind of broken EROFS structure is found and named by path and nid.

The image is whole and all digests are right, as if whoever made it had made it so.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from lazyfs.erofs import ondisk
from lazyfs.erofs.image import Encoded, Extent, Image, Inode, open_image
from lazyfs.erofs.inode import inode_address
from lazyfs.errors import DigestMismatchError, TruncatedRecordError
from lazyfs.layer.contentfile import ContentFile
from lazyfs.model import ByteRange
from lazyfs.steps import Need, run
from lazyfs.verify.content import Content
from lazyfs.verify.findings import Counts, Finding, Findings
from lazyfs.verify.structure import check_structure
from tests.support.erofs_files import (
    golden_devices,
    golden_names,
    make_image,
    make_tree,
    packaged_mkfs,
    sealed,
)

NLINK_OFFSET, MODE_OFFSET, SIZE_OFFSET, DATA_OFFSET, XATTR_COUNT_OFFSET = 6, 4, 8, 16, 2
"""In a compact inode (``struct erofs_inode_compact``)."""

DIRENT_BYTES = 12


@dataclass
class Victim:
    """An image that a test breaks."""

    data: bytearray
    image: Image

    def read(self, need: Need) -> bytes:
        return bytes(self.data[need.offset : need.offset + need.length])

    def inode(self, path: str) -> Inode:
        inode = run(self.image.inode(self.image.root_nid), self.read)
        for name in path.split("/"):
            if name:
                entry = run(self.image.lookup(inode, name.encode()), self.read)
                inode = run(self.image.inode(entry.nid), self.read)
        return inode

    def address(self, path: str) -> int:
        """Where a path's inode lies, which must be a compact one."""
        address = inode_address(self.image.superblock, self.inode(path).nid)
        assert not self.data[address] & 1
        return address

    def directory_data(self, path: str) -> int:
        """Where the first block of a directory lies."""
        (extent, *_) = run(self.image.extents(self.inode(path), 0, 1), self.read)
        assert isinstance(extent, Extent)
        return extent.address

    def put(self, offset: int, value: int, size: int) -> None:
        self.data[offset : offset + size] = value.to_bytes(size, "little")

    def get(self, offset: int, size: int) -> int:
        return int.from_bytes(self.data[offset : offset + size], "little")

    def entry(self, directory: str, name: bytes) -> int:
        """Where the dirent of a name lies in the image, in the directory's first block."""
        start = self.directory_data(directory)
        count = self.get(start + 8, 2) // DIRENT_BYTES
        for index in range(count):
            at = start + index * DIRENT_BYTES
            begin = start + self.get(at + 8, 2)
            end = start + self.get(at + DIRENT_BYTES + 8, 2) if index + 1 < count else None
            if bytes(self.data[begin:end]).split(b"\0")[0] == name:
                return at
        raise AssertionError(f"no {name!r} in the first block")


async def check(folder: Path, *datas: bytes) -> tuple[list[Finding], Counts]:
    """What is found in an image and its devices."""
    findings, counts = Findings(), Counts()
    with contextlib.ExitStack() as files:
        contents = []
        for number, data in enumerate(datas):
            path = folder / f"checked-{number}"
            path.write_bytes(data)
            file = files.enter_context(path.open("rb"))
            contents.append(Content(ContentFile(file.fileno(), str(path)), len(data), []))
        await trio.to_thread.run_sync(check_structure, contents, findings, counts)
    return findings.listed, counts


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trees")
    make_tree(folder / "tree", longest_name=200)
    (folder / "tree/linked").write_bytes(b"two names")
    (folder / "tree/linked-too").hardlink_to(folder / "tree/linked")
    (folder / "tree/p/q/r").mkdir(parents=True)
    (folder / "tree/p/file").write_bytes(b"in p")
    return folder


def make(trees: Path, *options: str) -> bytes:
    """An image of the tree, by mkfs.erofs."""
    path = trees / "made.erofs"
    path.unlink(missing_ok=True)
    make_image(packaged_mkfs(), trees / "tree", path, "-T0", *options)
    return path.read_bytes()


@pytest.fixture(scope="module")
def plain(trees: Path) -> bytes:
    return make(trees)


def victim_of(data: bytes) -> Victim:
    copy = bytearray(data)
    image = run(open_image(), lambda need: bytes(copy[need.offset : need.offset + need.length]))
    return Victim(copy, image)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-zlz4",),
        ("-zlz4hc", "-C65536"),
        ("-zlz4hc", "-Eztailpacking"),
        ("--chunksize=4096",),
        ("-Eforce-inode-extended",),
    ],
)
async def test_sound(trees: Path, options: tuple[str, ...], tmp_path: Path):
    found, counts = await check(tmp_path, make(trees, *options))
    assert found == []
    names = sum(1 for _ in (trees / "tree").rglob("*"))
    directories = 1 + sum(
        path.is_dir() and not path.is_symlink() for path in (trees / "tree").rglob("*")
    )
    assert counts.directories == directories
    assert counts.names == names + 2 * directories
    assert counts.inodes < names + 1, "hard links are one inode"


Break = Callable[[Victim], None]


def _set(path: str, offset: int, value: int, size: int) -> Break:
    return lambda victim: victim.put(victim.address(path) + offset, value, size)


def _dirent(directory: str, name: bytes, nid: Callable[[Victim], int]) -> Break:
    return lambda victim: victim.put(victim.entry(directory, name), nid(victim), 8)


def _swap_names(victim: Victim) -> None:
    """Exchange the first letters of two neighbours, so that they are out of order."""
    start = victim.directory_data("size")
    count = victim.get(start + 8, 2) // DIRENT_BYTES
    names = [start + victim.get(start + index * DIRENT_BYTES + 8, 2) for index in range(count)]
    one, other = names[2], names[count - 1]
    data = victim.data
    data[one], data[other] = data[other], data[one]


def _nid_of(path: str) -> Callable[[Victim], int]:
    return lambda victim: victim.inode(path).nid


TWO_NAMES = "directory has two names"
BROKEN: dict[str, tuple[Break, str, str]] = {
    "unknown type": (_set("size/4097", MODE_OFFSET, 0o170644, 2), "/size/4097", "inode: "),
    "another type": (
        _set("size/4097", MODE_OFFSET, 0o120644, 2),
        "/size/4097",
        "directory: its directory",
    ),
    "unknown layout": (_set("size/4097", 0, 0x0E, 2), "/size/4097", "inode: "),
    "size": (_set("data/noise", SIZE_OFFSET, 1 << 30, 4), "/data/noise", "data: at byte 0 of"),
    "data": (_set("size/text", DATA_OFFSET, 1 << 24, 4), "/size/text", "data: at byte 0 of 60000"),
    "links of a file": (_set("p/file", NLINK_OFFSET, 2, 2), "/p/file", "is 2, there are 1"),
    "links of a link": (_set("linked", NLINK_OFFSET, 3, 2), "/linked", "is 3, there are 2"),
    "links of a directory": (_set("p", NLINK_OFFSET, 9, 2), "/p", "is 9, with 1 directories"),
    "xattrs": (_set("size/4097", XATTR_COUNT_OFFSET, 60000, 2), "/size/4097", ""),
    "nid": (_dirent("p", b"file", lambda victim: 1 << 40), "/p/file", "inode: "),
    "two names": (_dirent("p", b"q", _nid_of("size")), "", TWO_NAMES),
    "loop": (_dirent("p/q", b"r", _nid_of("p")), "/p/q/r", TWO_NAMES),
    "parent": (_dirent("p/q", b"..", _nid_of("size")), "/p/q", "'..' is nid"),
    "self": (_dirent("p/q", b".", _nid_of("p")), "/p/q", "directory: "),
    "order": (_swap_names, "/size", "directory: "),
    "name": (lambda victim: victim.put(victim.directory_data("p") + 8, 7, 2), "/p", "directory: "),
}


@pytest.mark.parametrize("how", BROKEN)
async def test_broken(how: str, plain: bytes, tmp_path: Path):
    victim = victim_of(plain)
    breaking, path, text = BROKEN[how]
    breaking(victim)
    found, _ = await check(tmp_path, sealed(victim.data))
    here = [one for one in found if path in ("", one.where["path"])]
    assert any(text in one.message for one in here), found
    assert all(isinstance(one.where["nid"], int) for one in found)


async def test_the_others_are_still_checked(plain: bytes, tmp_path: Path):
    victim = victim_of(plain)
    for how in ("unknown type", "links of a link", "name", "data"):
        BROKEN[how][0](victim)
    found, counts = await check(tmp_path, sealed(victim.data))
    assert {"/size/4097", "/linked", "/p", "/size/text"} <= {one.where["path"] for one in found}
    _, sound = await check(tmp_path, plain)
    assert counts.inodes > sound.inodes - 10


async def test_superblock(plain: bytes, tmp_path: Path):
    for offset, message in ((0, "magic"), (12, ""), (83, "features")):
        data = bytearray(plain)
        data[ondisk.EROFS_SUPER_OFFSET + offset] ^= 0x80
        found, _ = await check(tmp_path, bytes(data))
        assert any("superblock" in one.message and message in one.message for one in found), found


async def test_shorter_than_it_says(plain: bytes, tmp_path: Path):
    found, _ = await check(tmp_path, plain[:-4096])
    assert any("image of" in one.message for one in found)


async def test_compressed_data_that_cannot_be_decompressed(trees: Path, tmp_path: Path):
    """Every pcluster of a file is damaged: the extents that do not decode are named."""
    victim = victim_of(make(trees, "-zlz4"))
    inode = victim.inode("size/text")
    runs = run(victim.image.extents(inode, 0, inode.size_bytes), victim.read)
    packed = [one for one in runs if isinstance(one, Encoded)]
    assert packed
    for extent in packed:
        for at in range(extent.address, extent.address + extent.stored_bytes):
            victim.data[at] = 0xFF
    found, _ = await check(tmp_path, sealed(victim.data))
    hits = [one for one in found if one.where["path"] == "/size/text"]
    for extent, one in zip(packed, hits, strict=True):
        assert f"data: at byte {extent.offset} of 60000" in one.message


async def test_a_device_that_is_not_there(tmp_path: Path):
    """With its data on an extra device: sound with it, named without it."""
    data, blob = golden_devices("device")
    found, _ = await check(tmp_path, data)
    assert "data on 1 more devices, 0 are there" in found[0].message
    assert any(one.where.get("path") == "/data/noise" for one in found)
    found, _ = await check(tmp_path, data, blob[:4096])
    assert any(one.where.get("path") == "/data/noise" for one in found)


@pytest.mark.parametrize("name", golden_names())
async def test_sound_images_of_every_feature(name: str, tmp_path: Path):
    found, counts = await check(tmp_path, *golden_devices(name))
    assert found == []
    assert counts.inodes > 20


async def test_what_is_lost_is_not_read(plain: bytes, tmp_path: Path):
    path = tmp_path / "image"
    path.write_bytes(plain)
    with path.open("rb") as file:
        lost = [ByteRange(4096, 4096), ByteRange(12288, 100)]
        content = Content(ContentFile(file.fileno(), str(path)), len(plain), lost)
        assert content.read(0, 4096) == plain[:4096]
        assert content.read(8192, 4096) == plain[8192:12288]
        assert content.read(12388, 10) == plain[12388:12398]
        for offset, length in (
            (4095, 2),
            (4096, 1),
            (0, 12288),
            (8191, 5),
            (12287, 2),
            (12387, 50),
        ):
            with pytest.raises(DigestMismatchError):
                content.read(offset, length)
        with pytest.raises(TruncatedRecordError):
            content.read(len(plain) - 1, 2)

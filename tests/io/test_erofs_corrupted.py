"""Every golden image with one field or one bit changed, walked through the tree that mounts serve.

Errors are fine. A wrong byte, an exception of another kind, endless work and memory beyond the
caches' limits are bugs. A few changes of each image are tried; LAZYFS_FUZZ_EXAMPLES sets how many
for each image (0: every one, some 460,000 in all).
"""

import os
import resource
import stat
from collections.abc import Sequence

import pytest

from cache.memo import Memo
from lazyfs.erofs.image import Extent
from lazyfs.errors import ImageFormatError, LazyfsError, TruncatedRecordError
from lazyfs.image.erofs_layer import ErofsLayer
from lazyfs.image.single import SingleTree
from lazyfs.model import ROOT_NODE, NodeId
from tests.support.erofs_fields import some_changes
from tests.support.erofs_files import ImageFiles, golden_devices, golden_names, sealed

EXAMPLES = os.environ.get("LAZYFS_FUZZ_EXAMPLES", "6")

DERIVED_BYTES = 1 << 20
MOST_BYTES = 1 << 30
"""Of the whole test process; other tests may have run in it."""

MOST_REQUESTS = 200_000
"""A walk of a sound image makes about 2,000."""

MOST_NODES = 5000
PIECE_BYTES = 20_000


class WorkLimitError(Exception):
    """More requests than any walk needs."""


class MemoryDevice:
    """A ``VerifiedReader`` of bytes in memory that counts what it is asked for."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size_bytes = len(data)
        self.requests = 0

    def read_nowait(self, offset: int, length: int) -> bytes:
        self.requests += 1
        if self.requests > MOST_REQUESTS:
            raise WorkLimitError
        assert length <= 1 << 20
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise TruncatedRecordError(f"{length} bytes at {offset}")
        return self._data[offset : offset + length]

    async def read(self, offset: int, length: int) -> bytes:
        return self.read_nowait(offset, length)


class Walk:
    """Everything that FUSE could ask of an image, in the order in which a user would."""

    def __init__(self, tree: SingleTree) -> None:
        self._tree = tree
        self._ancestors: dict[NodeId, tuple[NodeId, ...]] = {}
        self.contents: dict[bytes, bytes] = {}
        """Data of files that could be read, by path."""

    async def everything(self) -> None:
        pending: list[tuple[NodeId, bytes, tuple[NodeId, ...]]] = [(ROOT_NODE, b"", ())]
        visited = 0
        while pending and visited < MOST_NODES:
            node, path, above = pending.pop()
            assert node not in above, f"{path!r} lies in itself"
            visited += 1
            mode = await self._attributes(node)
            await self._details(node, path, mode)
            if stat.S_ISDIR(mode):
                for name, child in await self._children(node):
                    pending.append((child, path + b"/" + name, (*above, node)))
        assert not pending, "more nodes than a small image can have"

    async def _attributes(self, node: NodeId) -> int:
        try:
            return (await self._tree.attributes(node)).mode
        except LazyfsError:
            return 0

    async def _details(self, node: NodeId, path: bytes, mode: int) -> None:
        try:
            xattrs = await self._tree.xattrs(node)
            assert all(name and b"\0" not in name and len(name) <= 255 for name in xattrs)
        except LazyfsError:
            pass
        if stat.S_ISLNK(mode):
            try:
                target = await self._tree.link_target(node)
                assert 0 < len(target) < 4096
                assert b"\0" not in target
            except LazyfsError:
                pass
        elif stat.S_ISREG(mode):
            await self._read(node, path)

    async def _read(self, node: NodeId, path: bytes) -> None:
        size = (await self._tree.attributes(node)).size_bytes
        for offset in {0, PIECE_BYTES, max(0, size - PIECE_BYTES)}:
            try:
                data = await self._tree.read(node, offset, PIECE_BYTES)
            except LazyfsError:
                continue
            assert len(data) == max(0, min(PIECE_BYTES, size - offset)), path
            self.contents[b"%s@%d" % (path, offset)] = data

    async def _children(self, node: NodeId) -> Sequence[tuple[bytes, NodeId]]:
        children = []
        position = 0
        names: list[bytes] = []
        try:
            while entries := await self._tree.entries(node, position):
                for entry in entries:
                    assert entry.name not in (b"", b".", b"..")
                    assert not {0, 0x2F} & set(entry.name)
                    assert len(entry.name) <= 255
                    assert entry.next_position > position
                    position = entry.next_position
                    names.append(entry.name)
                    try:
                        children.append((entry.name, await self._tree.lookup(node, entry.name)))
                    except LazyfsError:
                        continue
        except LazyfsError:
            pass
        assert names == sorted(set(names))
        return children


async def walk(devices: Sequence[bytes]) -> Walk | None:
    """Walk an image; None if it was refused."""
    readers = [MemoryDevice(data) for data in devices]
    layer = ErofsLayer(0, readers[:1], Memo(DERIVED_BYTES))
    try:
        await layer.open()
        layer.attach(readers[1:])
    except LazyfsError:
        return None
    found = Walk(SingleTree(layer))
    await found.everything()
    return found


@pytest.mark.parametrize("name", golden_names())
async def test_one_change_of_a_sound_image(name: str) -> None:
    devices = golden_devices(name)
    sound = await walk(devices)
    assert sound is not None
    assert len(sound.contents) > 50
    refused = different = 0
    changes = some_changes(name, int(EXAMPLES) or None)
    for change in changes:
        try:
            found = await walk([change.of(devices[0]), *devices[1:]])
        except BaseException as error:
            error.add_note(f"{name}: {change.what}")
            raise
        refused += found is None
        different += found is not None and found.contents != sound.contents
    print(  # noqa: T201 - for a long run with "pytest -s"
        f"{name}: {len(changes)} images, {refused} refused, {different} with other data"
    )
    assert changes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert peak < MOST_BYTES


@pytest.mark.parametrize("target", [b"a/b/c", b"a/b", b"a", b"empty"])
async def test_a_directory_is_only_where_its_parent_entry_says(target: bytes) -> None:
    image = bytearray(golden_devices("plain-512")[0])
    files = ImageFiles([bytes(image)])
    directory = files.inode_at(b"a/b/c")
    [run] = files.run(files.image.extents(directory, 0, directory.size_bytes))
    assert isinstance(run, Extent)
    entry = files.run(files.image.lookup(directory, b"d"))
    at = image.index(entry.nid.to_bytes(8, "little"), run.address, run.address + run.length)
    image[at : at + 8] = files.inode_at(target).nid.to_bytes(8, "little")

    layer = ErofsLayer(0, [MemoryDevice(sealed(image))], Memo(DERIVED_BYTES))
    await layer.open()
    with pytest.raises(ImageFormatError, match="belongs in"):
        await layer.lookup(directory.nid, b"d")
    assert (await layer.lookup(files.inode_at(b"a").nid, b"b")).nid == files.inode_at(b"a/b").nid
    found = await walk([sealed(image)])
    assert found is not None
    assert not any(path.startswith(b"/a/b/c/d/") for path in found.contents)


async def test_the_root_is_nowhere_below_itself() -> None:
    image = bytearray(golden_devices("plain-512")[0])
    files = ImageFiles([bytes(image)])
    root = files.run(files.image.inode(files.image.root_nid))
    [run, *_] = files.run(files.image.extents(root, 0, root.size_bytes))
    assert isinstance(run, Extent)
    entry = files.run(files.image.lookup(root, b"a"))
    at = image.index(entry.nid.to_bytes(8, "little"), run.address, run.address + run.length)
    image[at : at + 8] = root.nid.to_bytes(8, "little")
    layer = ErofsLayer(0, [MemoryDevice(sealed(image))], Memo(DERIVED_BYTES))
    await layer.open()
    with pytest.raises(ImageFormatError, match="belongs in"):
        await layer.lookup(root.nid, b"a")

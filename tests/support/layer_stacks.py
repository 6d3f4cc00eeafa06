"""Stacks of small layers, and what the tree of all of them must be.

``unpack`` knows nothing of the rules by which our code reads a stack from above: it applies the
layers one after the other, from the bottom, as a container runtime does with change sets.
"""

import itertools
import random
import stat
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import trio

from cache.memo import Memo
from lazyfs.erofs.extents import Extent
from lazyfs.errors import TruncatedRecordError
from lazyfs.image.erofs_layer import ErofsLayer
from lazyfs.image.merged import MergedTree
from lazyfs.model import ROOT_NODE, DirectoryEntry, Nid, NodeId
from tests.support.erofs_files import ImageFiles, sealed
from tests.support.layer_builder import (
    Node,
    device,
    directory,
    erofs_image,
    file,
    link,
    whiteout,
)

NAMES = (b"a", b"b", b"c", b"dir", b"a long name with spaces", b"\xff\xfe")

LayerNodes = Mapping[bytes, Node]


class MemoryReader:
    """A ``VerifiedReader`` over bytes; ``hesitant`` ones have nothing at hand."""

    def __init__(self, data: bytes, *, hesitant: bool = False) -> None:
        self.data = data
        self.hesitant = hesitant
        self.reads = 0

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def read_nowait(self, offset: int, length: int) -> bytes | None:
        if self.hesitant or offset < 0 or offset + length > len(self.data):
            return None
        return self.data[offset : offset + length]

    async def read(self, offset: int, length: int) -> bytes:
        self.reads += 1
        await trio.lowlevel.checkpoint()
        if offset < 0 or offset + length > len(self.data):
            raise TruncatedRecordError(f"{length} bytes at {offset} of {len(self.data)}")
        return self.data[offset : offset + length]


async def open_layers(images: Sequence[bytes], *, hesitant: bool = False) -> list[ErofsLayer]:
    memo = Memo(1 << 20)
    layers = []
    for number, image in enumerate(images):
        layer = ErofsLayer(number, [MemoryReader(image, hesitant=hesitant)], memo)
        await layer.open()
        layers.append(layer)
    return layers


# Making stacks


def random_stack(rng: random.Random, count: int) -> list[dict[bytes, Node]]:
    """Layers, bottom first, with few names, so that they meet."""
    return [random_layer(rng, lowest=number == 0) for number in range(count)]


def random_layer(rng: random.Random, *, lowest: bool) -> dict[bytes, Node]:
    root = directory(mode=rng.choice([0o755, 0o700]), opaque=rng.random() < 0.2)
    nodes: dict[bytes, Node] = {b"": root}
    _fill(rng, b"", 0, nodes, lowest)
    return nodes


def _fill(
    rng: random.Random, path: bytes, depth: int, nodes: dict[bytes, Node], lowest: bool
) -> None:
    for name in NAMES:
        if rng.random() < 0.35:
            continue
        below = path + b"/" + name if path else name
        kind = rng.choice(["file", "dir", "dir", "dir", "whiteout", "link", "device"])
        if kind == "dir" and depth < 3:
            xattrs = {b"user.where": b"%d" % rng.randrange(9)} if rng.random() < 0.3 else {}
            nodes[below] = directory(
                mode=rng.choice([0o755, 0o711, 0o1777]),
                xattrs=xattrs,
                opaque=rng.random() < 0.2,
                mtime_ns=rng.randrange(10**18),
            )
            _fill(rng, below, depth + 1, nodes, lowest)
        elif kind == "whiteout" and not lowest:
            nodes[below] = whiteout()
        elif kind == "link":
            nodes[below] = link(b"target %d" % rng.randrange(99))
        elif kind == "device":
            nodes[below] = device(0, 7) if rng.random() < 0.5 else device(7, 0)
        else:
            data = bytes([rng.randrange(256)]) * rng.choice([0, 1, 100, 5000])
            nodes[below] = file(data, mode=0o640, xattrs={b"user.x": b"y"} if data else {})


# What must come out


@dataclass
class Seen:
    """One object of a tree."""

    node: Node
    parts: int = 1
    """Layers that a directory is merged of."""
    children: "dict[bytes, Seen]" = field(default_factory=dict)

    def walk(self, path: bytes = b"") -> "dict[bytes, Seen]":
        """Everything by path; this is ``b""``."""
        found = {path: self}
        for name, child in self.children.items():
            found |= child.walk(path + b"/" + name if path else name)
        return found


def unpack(stack: Sequence[LayerNodes]) -> Seen:
    """Apply the layers, bottom first; that a root is opaque means nothing."""
    root = Seen(directory(), parts=0)
    for layer in stack:
        for path, node in sorted(layer.items(), key=lambda item: item[0].count(b"/")):
            if not path:
                root.node = node
                root.parts += 1
                continue
            *above, name = path.split(b"/")
            place = root
            for step in above:
                place = place.children[step]
            _apply(place, name, node)
    return root


def _apply(place: Seen, name: bytes, node: Node) -> None:
    old = place.children.pop(name, None)
    if node.kind == stat.S_IFCHR and node.device == (0, 0):
        return
    new = place.children[name] = Seen(node)
    both = old is not None and stat.S_ISDIR(old.node.kind) and stat.S_ISDIR(node.kind)
    if both and old is not None and not node.opaque:
        new.children = old.children
        new.parts = old.parts + 1


def images_of(stack: Sequence[LayerNodes]) -> list[bytes]:
    return [erofs_image(layer) for layer in stack]


# What does come out


async def names_in(tree: MergedTree, node: NodeId) -> dict[bytes, tuple[NodeId, int]]:
    """A directory's names, with what the listing says of them."""
    found: dict[bytes, tuple[NodeId, int]] = {}
    position = 0
    while entries := await tree.entries(node, position):
        for entry in entries:
            assert entry.name not in found
            assert entry.next_position > position
            position = entry.next_position
            found[entry.name] = entry.node, entry.file_type
    return found


async def compare(tree: MergedTree, wanted: Seen) -> dict[bytes, NodeId]:
    """Hold a tree against what it must be; the nodes by path."""
    nodes: dict[bytes, NodeId] = {}
    pending = [(b"", ROOT_NODE, wanted)]
    while pending:
        path, node, seen = pending.pop()
        nodes[path] = node
        await compare_object(tree, node, seen, path)
        if stat.S_ISDIR(seen.node.kind):
            for name, (child, _) in (await names_in(tree, node)).items():
                below = path + b"/" + name if path else name
                pending.append((below, child, seen.children[name]))
    return nodes


async def compare_object(tree: MergedTree, node: NodeId, seen: Seen, path: bytes) -> None:
    """Hold one object, and the names in it, against what they must be."""
    said = seen.node
    attributes = await tree.attributes(node)
    assert attributes.mode == said.kind | said.mode, path
    assert await tree.xattrs(node) == said.xattrs, path
    if said.kind == stat.S_IFREG:
        assert await tree.read(node, 0, 1 << 20) == said.data, path
    elif said.kind == stat.S_IFLNK:
        assert await tree.link_target(node) == said.data, path
    elif said.kind == stat.S_IFCHR:
        assert (attributes.rdev_major, attributes.rdev_minor) == said.device
    elif said.kind == stat.S_IFDIR:
        assert (attributes.nlink == 1) is (seen.parts > 1), path
        listed = await names_in(tree, node)
        assert {name: kind for name, (_, kind) in listed.items()} == {
            name: child.node.kind for name, child in seen.children.items()
        }, path
        for name, (child, kind) in listed.items():
            if kind == stat.S_IFDIR:
                shown = await tree.listed_directory(node, DirectoryEntry(name, child, kind, 1))
                assert shown in (None, await tree.attributes(child)), path
            assert await tree.lookup(node, name) == child, path


# Breaking images


def nid_of(image: bytes, path: bytes) -> int:
    """The nid of a path; of the root for no path."""
    files = ImageFiles([image])
    return files.inode_at(path).nid if path else files.image.root_nid


def repointed(
    image: bytes, folder: bytes, name: bytes, nid: int, file_type: int | None = None
) -> bytes:
    """The image with another nid (and perhaps file type) in one directory entry."""
    files = ImageFiles([image])
    directory = files.run(files.image.inode(Nid(nid_of(image, folder))))
    (run,) = files.run(files.image.extents(directory, 0, directory.size_bytes))
    assert isinstance(run, Extent)
    (names_start,) = struct.unpack_from("<H", image, run.address + 8)
    places = range(run.address, run.address + names_start, 12)
    starts = [*(struct.unpack_from("<H", image, at + 8)[0] for at in places), directory.size_bytes]
    names = [image[run.address + a : run.address + b] for a, b in itertools.pairwise(starts)]
    changed = bytearray(image)
    at = places[names.index(name)]
    struct.pack_into("<Q", changed, at, nid)
    if file_type is not None:
        changed[at + 10] = file_type
    return sealed(changed)

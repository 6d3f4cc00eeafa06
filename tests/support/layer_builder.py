"""Layer blobs and small EROFS images in memory, in every form that the reader must take.

``seekable`` wraps any bytes; ``Verity`` says what kind of tree proves them. ``erofs_image``
makes an image of a dictionary of paths.
"""

import hashlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import zstandard

from lazyfs.erofs.build.builder import EntryAttributes, ImageBuilder
from lazyfs.model import ByteRange, VerifyMode
from lazyfs.plan import LayerPlan, plan_layers
from lazyfs.seekable.annotations import SeekableAnnotations
from lazyfs.seekable.chunkindex import encode_chunk_index
from lazyfs.seekable.containerdtable import encode_containerd_table
from lazyfs.seekable.frames import compress_chunk
from lazyfs.seekable.mediatypes import RAW_LAYER, SPEC_RAW_LAYER, SPEC_ZSTD_LAYER, ZSTD_LAYER
from lazyfs.seekable.skippable import encode_skippable_header
from lazyfs.seekable.specannotations import SpecAnnotations
from lazyfs.verity.build import HashTreeBuilder
from registry.digest import Digest
from registry.manifest import Descriptor

HEADER = 8
HARD_LINK = 0
NOWHERE = ByteRange(0, 0)


@dataclass(frozen=True)
class Verity:
    """The form of a dm-verity tree."""

    block: int = 4096
    algorithm: str = "sha512"
    salt: bytes = b""


@dataclass(frozen=True)
class Layer:
    """A blob, what it holds, and where the parts of the blob lie."""

    image: bytes
    blob: bytes
    media_type: str
    annotations: dict[str, str] = field(default_factory=dict)
    frames: tuple[ByteRange, ...] = ()
    table: ByteRange = NOWHERE
    """The chunk table, without the header of its frame."""
    tree: ByteRange = NOWHERE
    """The dm-verity payload, in the blob or (by the image specification) in the content."""

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(self.media_type, Digest.of(self.blob), len(self.blob), self.annotations)

    def plan(self, verify: VerifyMode = VerifyMode.ALWAYS) -> LayerPlan:
        (plan,) = plan_layers([self.descriptor], verify)
        return plan

    def changed(self, **annotations: str | None) -> "Layer":
        """With other annotations; their names' dots and dashes are given as underscores."""
        names = {name.translate(_UNDERSCORES): name for name in self.annotations}
        merged: dict[str, str | None] = dict(self.annotations)
        for key, value in annotations.items():
            (name,) = [full for short, full in names.items() if short.endswith(key)]
            merged[name] = value
        kept = {name: value for name, value in merged.items() if value is not None}
        return replace(self, annotations=kept)

    def flipped(self, offset: int, bit: int = 1) -> "Layer":
        """With one bit of the blob changed, which the descriptor does not know of."""
        blob = bytearray(self.blob)
        blob[offset] ^= bit
        return replace(self, blob=bytes(blob))


_UNDERSCORES = str.maketrans(".-", "__")


def seekable(
    image: bytes,
    chunk: int = 65536,
    verity: Verity | None = Verity(),
    *,
    digests: bool = True,
    level: int = 1,
) -> Layer:
    """A blob in containerd's layout.

    Args:
        image: any bytes.
        chunk: size of a chunk in bytes.
        verity: the tree, if there is to be one.
        digests: whether the table has the SHA-512 of each frame.
        level: of zstd.
    """
    frames, stored = _frames(image, range(0, len(image), chunk), level)
    sha512 = [hashlib.sha512(stored[frame.offset : frame.end]).digest() for frame in frames]
    table = encode_containerd_table(
        image_size_bytes=len(image),
        chunk_size_bytes=chunk,
        frame_offsets=[frame.offset for frame in frames],
        digests=sha512 if digests else None,
    )
    start = len(stored)
    blob = stored + encode_skippable_header(len(table)) + table
    annotations = SeekableAnnotations(start, hashlib.sha512(table).digest())
    tree = NOWHERE
    if verity is not None:
        payload, root = hash_tree(image, verity)
        annotations = replace(annotations, verity_offset=len(blob), root_digest=root)
        tree = ByteRange(len(blob) + HEADER, len(payload))
        blob += encode_skippable_header(len(payload)) + payload
    return Layer(
        image,
        blob,
        ZSTD_LAYER,
        annotations.encode(),
        frames,
        ByteRange(start + HEADER, len(table)),
        tree,
    )


def spec_seekable(
    image: bytes,
    chunk: int = 65536,
    verity: Verity | None = Verity(),
    *,
    checksums: str | None = "sha256",
    index_digest: bool = True,
) -> Layer:
    """A blob in the layout of the EROFS image specification: tree in the chunks, index behind.

    Args:
        image: any bytes; padded to whole blocks if there is a tree.
        chunk: size of a chunk in bytes.
        verity: the tree, if there is to be one.
        checksums: algorithm of the frames' checksums; None: the index has none.
        index_digest: whether the annotations have the digest of the index.
    """
    annotations = SpecAnnotations()
    content = image
    tree = NOWHERE
    if verity is not None:
        image = image.ljust(-(-len(image) // verity.block) * verity.block, b"\0")
        payload, root = hash_tree(image, verity)
        tree = ByteRange(len(image), len(payload))
        content = image + payload
        annotations = replace(
            annotations, hash_offset=len(image), root_digest=root, block_size=verity.block
        )
    offsets = range(0, len(content), chunk)
    frames, stored = _frames(content, offsets, 1)
    found = None
    if checksums is not None:
        parts = [stored[frame.offset : frame.end] for frame in frames]
        found = [hashlib.new(checksums, part).digest() for part in parts]
    index = encode_chunk_index(
        content_size_bytes=len(content),
        content_offsets=list(offsets),
        frame_offsets=[frame.offset for frame in frames],
        checksums=found,
    )
    start = len(stored)
    annotations = replace(annotations, index_start=start)
    if index_digest:
        annotations = replace(annotations, index_digest=hashlib.sha256(index).digest())
    blob = stored + encode_skippable_header(len(index)) + index
    where = ByteRange(start + HEADER, len(index))
    return Layer(image, blob, SPEC_ZSTD_LAYER, annotations.encode(), frames, where, tree)


def without_index(layer: Layer) -> Layer:
    """A layer of the image specification that can only be decoded from its start."""
    kept = {key: value for key, value in layer.annotations.items() if "chunk-index" not in key}
    blob = layer.blob[: layer.frames[-1].end]
    return replace(layer, blob=blob, annotations=kept, frames=(), table=ByteRange(0, 0))


def raw(image: bytes) -> Layer:
    """The image as its own blob."""
    return Layer(image, image, RAW_LAYER)


def spec_raw(image: bytes, verity: Verity) -> Layer:
    """The image and its tree as their own blob, proven by the tree alone."""
    image = image.ljust(-(-len(image) // verity.block) * verity.block, b"\0")
    payload, root = hash_tree(image, verity)
    said = SpecAnnotations(hash_offset=len(image), root_digest=root, block_size=verity.block)
    tree = ByteRange(len(image), len(payload))
    return Layer(image, image + payload, SPEC_RAW_LAYER, said.encode(), tree=tree)


def zstd(image: bytes, frame: int | None = None) -> Layer:
    """A plain zstd stream, of frames over ``frame`` bytes each."""
    size = frame or max(1, len(image))
    parts = [zstandard.compress(image[at : at + size]) for at in range(0, len(image), size)]
    return Layer(image, b"".join(parts) or zstandard.compress(b""), ZSTD_LAYER)


def hash_tree(data: bytes, verity: Verity) -> tuple[bytes, bytes]:
    """Payload and root digest."""
    builder = HashTreeBuilder(
        algorithm=verity.algorithm, block_size_bytes=verity.block, salt=verity.salt
    )
    builder.add(data)
    built = builder.finish()
    return built.payload, built.root_digest


def _frames(content: bytes, offsets: range, level: int) -> tuple[tuple[ByteRange, ...], bytes]:
    frames: list[ByteRange] = []
    stored = bytearray()
    for start in offsets:
        frame = compress_chunk(content[start : start + offsets.step], level)
        frames.append(ByteRange(len(stored), len(frame)))
        stored += frame
    return tuple(frames), bytes(stored)


# Images


@dataclass(frozen=True)
class Node:
    """An object of an image; by itself a directory."""

    kind: int = stat.S_IFDIR
    data: bytes = b""
    """Content of a file, or target of a link."""
    mode: int = 0o755
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)
    opaque: bool = False
    device: tuple[int, int] = (0, 0)
    mtime_ns: int = 0


def file(data: bytes = b"", **fields: Any) -> Node:
    return Node(stat.S_IFREG, data, **fields)


def directory(**fields: Any) -> Node:
    return Node(**fields)


def link(target: bytes) -> Node:
    return Node(stat.S_IFLNK, target)


def hard_link(target: bytes) -> Node:
    return Node(HARD_LINK, target)


def whiteout() -> Node:
    return Node(stat.S_IFCHR)


def device(major: int, minor: int) -> Node:
    return Node(stat.S_IFCHR, device=(major, minor))


class _Memory:
    def __init__(self) -> None:
        self.data = bytearray()

    def append(self, data: bytes | memoryview) -> None:
        self.data += data


def erofs_image(nodes: Mapping[bytes, Node]) -> bytes:
    """An EROFS image; ``b""`` is the root, missing parents are made."""
    spool = _Memory()
    builder = ImageBuilder(spool)
    for path, node in nodes.items():
        said = EntryAttributes(node.mode, 0, 0, node.mtime_ns, node.xattrs)
        if node.kind == stat.S_IFDIR:
            builder.add_directory(path, said)
            if node.opaque:
                builder.set_opaque(path)
        elif node.kind == stat.S_IFREG:
            size = len(node.data)
            builder.add_file(path, said, size, [ByteRange(0, size)], [node.data])
        elif node.kind == stat.S_IFLNK:
            builder.add_symlink(path, said, node.data)
        elif node.kind == HARD_LINK:
            builder.add_hard_link(path, node.data)
        elif node.device == (0, 0):
            builder.add_whiteout(path)
        else:
            builder.add_special(path, said, node.kind, *node.device)
    return bytes(builder.finish()) + bytes(spool.data)

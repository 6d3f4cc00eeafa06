"""What a manifest says about reading one layer in parts, whatever the layout of its blob."""

from dataclasses import dataclass

from lazyfs.model import ByteRange


@dataclass(frozen=True, slots=True)
class TablePointer:
    """Where a chunk table lies, and what proves it."""

    where: ByteRange
    """In the blob that holds it: the table, and the header of its frame if it is framed."""
    framed: bool
    """Whether it is the payload of a skippable frame."""
    digest: bytes | None
    """SHA-512 or SHA-256 of the table; None: nothing proves it."""


@dataclass(frozen=True, slots=True)
class TreePointer:
    """Where a dm-verity tree lies, and its root."""

    root_digest: bytes
    """SHA-512 or SHA-256."""
    offset: int
    """Where its superblock begins in the content, or the frame around it in the blob."""
    in_content: bool
    """Whether it lies behind the image in what the chunks hold, or in a frame of its own."""
    block_size_bytes: int | None = None
    """What its superblock must say; None: it decides alone."""


@dataclass(frozen=True, slots=True)
class Pointers:
    """How a layer can be read in parts, and what proves them."""

    table: TablePointer | None
    """None: no table, but a tree over a blob that is the content itself."""
    tree: TreePointer | None
    chunks_end: int
    """Where the stored chunks end in the layer's blob."""
    compressed: bool
    """Whether the blob is a zstd stream, each chunk a frame of it."""

"""Lay out a layer blob: frames as they come, then the metadata frames.

The caller writes each frame to the blob in order and tells its size and digest here; in the
end it appends the pieces of the tail. Each layout of blobs is a ``BlobLayout``.
"""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from lazyfs.seekable.annotations import SeekableAnnotations
from lazyfs.seekable.chunkindex import encode_chunk_index
from lazyfs.seekable.containerdtable import encode_containerd_table
from lazyfs.seekable.skippable import encode_skippable_header
from lazyfs.seekable.specannotations import SpecAnnotations

INDEX_ALIGNMENT_BYTES = 4
"""Where a chunk index should begin (EROFS image specification, section 3.4.3)."""


class VerityTree(NamedTuple):
    """A dm-verity tree that was made for an image."""

    payload_size_bytes: int
    """Of superblock and hash tree."""
    root_digest: bytes
    block_size_bytes: int


class BlobTail(NamedTuple):
    """What follows the chunk frames, and how the descriptor points to it."""

    pieces: tuple[bytes, ...]
    payload_follows: bool
    """Whether the payload of the dm-verity tree is still to be appended."""
    annotations: Mapping[str, str]


class BlobLayout(Protocol):
    """Grows with the frames of one blob: 8 or 16 bytes and a digest per chunk."""

    frame_algorithm: str
    """Names the digest of frames."""
    verity_algorithm: str
    tree_in_content: bool
    """Whether the tree is cut into chunks like the image, or follows in a frame of its own."""

    def add_frame(self, chunk_bytes: int, frame_bytes: int, digest: bytes) -> None:
        """Place the next chunk's frame.

        Args:
            chunk_bytes: length of the chunk.
            frame_bytes: its compressed length.
            digest: of the frame.
        """
        ...

    def finish(self, content_digest: str, tree: VerityTree | None) -> BlobTail:
        """The metadata frames behind the last chunk frame.

        Args:
            content_digest: hexadecimal SHA-256 of all chunks.
            tree: of the image, if it has one.

        Raises:
            ImageFormatError: a payload is too long for a skippable frame.
        """
        ...


class ContainerdLayout:
    """containerd's layout: chunks of one size, chunk table, dm-verity frame."""

    frame_algorithm = "sha512"
    verity_algorithm = "sha512"
    tree_in_content = False

    def __init__(self, chunk_size_bytes: int) -> None:
        """Begin a blob in chunks of that size; only the last may be shorter."""
        self._chunk_size_bytes = chunk_size_bytes
        self._image_size_bytes = 0
        self._offsets: list[int] = []
        self._digests: list[bytes] = []
        self._end = 0

    def add_frame(self, chunk_bytes: int, frame_bytes: int, digest: bytes) -> None:
        """As ``BlobLayout.add_frame``."""
        self._image_size_bytes += chunk_bytes
        self._offsets.append(self._end)
        self._digests.append(digest)
        self._end += frame_bytes

    def finish(self, content_digest: str, tree: VerityTree | None) -> BlobTail:
        """As ``BlobLayout.finish``."""
        table = encode_containerd_table(
            image_size_bytes=self._image_size_bytes,
            chunk_size_bytes=self._chunk_size_bytes,
            frame_offsets=self._offsets,
            digests=self._digests,
        )
        header = encode_skippable_header(len(table))
        digest = hashlib.sha512(table).digest()
        if tree is None:
            annotations = SeekableAnnotations(self._end, digest)
            return BlobTail((header, table), False, annotations.encode())
        verity_offset = self._end + len(header) + len(table)
        annotations = SeekableAnnotations(self._end, digest, verity_offset, tree.root_digest)
        verity_header = encode_skippable_header(tree.payload_size_bytes)
        return BlobTail((header, table, verity_header), True, annotations.encode())


class SpecLayout:
    """That of the EROFS image specification: chunks of any size, the tree among them."""

    frame_algorithm = "sha256"
    verity_algorithm = "sha256"
    tree_in_content = True

    def __init__(self) -> None:
        """Begin a blob."""
        self._content_offsets: list[int] = []
        self._frame_offsets: list[int] = []
        self._digests: list[bytes] = []
        self._content_end = 0
        self._end = 0

    def add_frame(self, chunk_bytes: int, frame_bytes: int, digest: bytes) -> None:
        """As ``BlobLayout.add_frame``."""
        self._content_offsets.append(self._content_end)
        self._frame_offsets.append(self._end)
        self._digests.append(digest)
        self._content_end += chunk_bytes
        self._end += frame_bytes

    def finish(self, content_digest: str, tree: VerityTree | None) -> BlobTail:
        """As ``BlobLayout.finish``; the last frame should end at ``INDEX_ALIGNMENT_BYTES``."""
        index = encode_chunk_index(
            content_size_bytes=self._content_end,
            content_offsets=self._content_offsets,
            frame_offsets=self._frame_offsets,
            checksums=self._digests,
        )
        header = encode_skippable_header(len(index))
        annotations = SpecAnnotations(
            index_start=self._end,
            index_end=self._end + len(header) + len(index),
            index_digest=hashlib.sha256(index).digest(),
            uncompressed_digest=f"sha256:{content_digest}",
        )
        values = annotations.encode()
        if tree is not None:
            verity = SpecAnnotations(
                hash_offset=self._content_end - tree.payload_size_bytes,
                root_digest=tree.root_digest,
                block_size=tree.block_size_bytes,
            )
            values |= verity.encode()
        return BlobTail((header, index), False, values)

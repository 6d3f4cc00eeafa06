"""Lay out a layer blob: frames as they come, then the metadata frames.

The caller writes each frame to the blob in order and tells its size and digest here; in the
end it appends the pieces of the tail.
"""

import hashlib
from typing import NamedTuple

from lazyfs.seekable.annotations import SeekableAnnotations
from lazyfs.seekable.containerdtable import encode_containerd_table
from lazyfs.seekable.skippable import encode_skippable_header


class VerityPayload(NamedTuple):
    """What the dm-verity frame holds, and what its root hashes to."""

    payload: bytes
    """Superblock and hash tree."""
    root_digest: bytes


class BlobTail(NamedTuple):
    """What follows the chunk frames, and how the descriptor points to it."""

    pieces: tuple[bytes, ...]
    annotations: SeekableAnnotations


class BlobLayout:
    """Grows with the frames of one blob: 8 bytes and a digest per chunk."""

    def __init__(self, image_size_bytes: int, chunk_size_bytes: int) -> None:
        """Begin a blob for an image of that size, in chunks of that size."""
        self._image_size_bytes = image_size_bytes
        self._chunk_size_bytes = chunk_size_bytes
        self._offsets: list[int] = []
        self._digests: list[bytes] = []
        self._end = 0

    def add_frame(self, size_bytes: int, digest: bytes) -> None:
        """Place the next chunk's frame.

        Args:
            size_bytes: its compressed length.
            digest: its SHA-512.
        """
        self._offsets.append(self._end)
        self._digests.append(digest)
        self._end += size_bytes

    def finish(self, verity: VerityPayload | None) -> BlobTail:
        """The metadata frames behind the last chunk frame.

        Raises:
            ImageFormatError: a payload is too long for a skippable frame.
        """
        table = encode_containerd_table(
            image_size_bytes=self._image_size_bytes,
            chunk_size_bytes=self._chunk_size_bytes,
            frame_offsets=self._offsets,
            digests=self._digests,
        )
        header = encode_skippable_header(len(table))
        digest = hashlib.sha512(table).digest()
        if verity is None:
            return BlobTail((header, table), SeekableAnnotations(self._end, digest))
        verity_offset = self._end + len(header) + len(table)
        annotations = SeekableAnnotations(self._end, digest, verity_offset, verity.root_digest)
        verity_header = encode_skippable_header(len(verity.payload))
        return BlobTail((header, table, verity_header, verity.payload), annotations)

"""The chunk table: offset in the content to chunk, chunk to its bytes in the blob and their digest.

The content is what all chunks hold, one after the other: the EROFS image, and in some layouts
the dm-verity tree behind it. ``ChunkTable`` knows no layout; each layout has a decoder that
gives one (``tables.py``). Memory: 8 or 16 bytes and a digest per chunk (1.8 MB for 100 GB in
chunks of 4 MiB), no object per entry. Every value from the blob is checked on decoding, so that
its methods cannot give a range outside the blob or the content.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from lazyfs.errors import ImageFormatError, LazyfsError
from lazyfs.model import ByteRange
from lazyfs.seekable.digests import algorithm_of, matches
from lazyfs.seekable.frames import decompress_chunk, verify_frame
from lazyfs.seekable.walk import walk_frames
from lazyfs.steps import run

MAX_TABLE_BYTES = 128 << 20
"""Largest chunk table accepted: 1.8 million chunks, which is 117 GB in chunks of 64 KiB."""

MAX_CHUNK_BYTES = 64 << 20
"""Largest chunk accepted: a read needs the whole chunk in memory."""

FRAME_SLACK_BYTES = 64 << 10
"""A frame may be this much longer than twice its chunk (no encoder comes near)."""

PLAIN_CHUNK_BYTES = 1 << 20
"""Chunks that a blob without a table is read in."""

MAX_CHUNKS_END = 2**63


class ChunkTable:
    """Where each chunk lies in the content and in the blob; immutable."""

    __slots__ = (
        "_content_offsets",
        "_digests",
        "_frame_offsets",
        "_padded",
        "compressed",
        "content_size_bytes",
        "digest_size_bytes",
    )

    def __init__(
        self,
        content_size_bytes: int,
        content_offsets: Sequence[int],
        frame_offsets: Sequence[int],
        digests: bytes | None,
        *,
        compressed: bool = True,
        padded: bool = False,
    ) -> None:
        """Take checked values.

        Args:
            content_size_bytes: length of all chunks together.
            content_offsets: where each chunk begins in the content, increasing from 0; a
                ``range`` when all chunks have one size.
            frame_offsets: where each chunk's stored bytes begin in the blob, increasing, and
                behind them where the last ones end.
            digests: of each chunk's stored bytes, joined; None when the table has none.
            compressed: whether chunks are zstd frames, or stored as they are.
            padded: whether skippable frames may follow a chunk's frame.
        """
        self.content_size_bytes = content_size_bytes
        self.compressed = compressed
        self.digest_size_bytes = len(digests) // len(content_offsets) if digests else 0
        """Bytes of a digest; 0 when the table has none."""
        self._content_offsets = content_offsets
        self._frame_offsets = frame_offsets
        self._digests = digests
        self._padded = padded

    def __len__(self) -> int:
        """Number of chunks."""
        return len(self._content_offsets)

    def frame(self, index: int) -> ByteRange:
        """The stored bytes of a chunk, in the blob."""
        start = self._frame_offsets[index]
        return ByteRange(start, self._frame_offsets[index + 1] - start)

    def filling(self, where: ByteRange) -> range:
        """The chunks whose stored bytes fill a range of the blob exactly; none if it is cut."""
        first = bisect_left(self._frame_offsets, where.offset)
        end = bisect_left(self._frame_offsets, where.end)
        if end >= len(self._frame_offsets):
            return range(0)
        found = ByteRange(self._frame_offsets[first], where.length)
        cut = found != where or self._frame_offsets[end] != where.end
        return range(0) if cut else range(first, end)

    def chunk(self, index: int) -> ByteRange:
        """The bytes of the content that a chunk holds."""
        start = self._content_offsets[index]
        last = index == len(self._content_offsets) - 1
        end = self.content_size_bytes if last else self._content_offsets[index + 1]
        return ByteRange(start, end - start)

    def digest(self, index: int) -> bytes | None:
        """Digest of a chunk's stored bytes (its length says which); None if there is none."""
        if self._digests is None:
            return None
        size = self.digest_size_bytes
        return self._digests[index * size : (index + 1) * size]

    @property
    def digest_algorithm(self) -> str | None:
        """``sha512`` or ``sha256``; None when the table has no digests."""
        digest = self.digest(0) if len(self) else None
        return None if digest is None else algorithm_of(digest)

    def index_at(self, content_offset: int) -> int:
        """The chunk that holds the byte at ``content_offset``."""
        if not 0 <= content_offset < self.content_size_bytes:
            raise AssertionError(f"offset {content_offset} is not in the image")
        return bisect_right(self._content_offsets, content_offset) - 1

    def parts(self, where: ByteRange) -> list[tuple[int, ByteRange]]:
        """The chunks under a range of the content, each with the range inside the chunk."""
        parts = []
        offset = where.offset
        while offset < where.end:
            index = self.index_at(offset)
            chunk = self.chunk(index)
            length = min(where.end, chunk.end) - offset
            parts.append((index, ByteRange(offset - chunk.offset, length)))
            offset += length
        return parts

    def verify(self, index: int, stored: bytes) -> None:
        """Check a chunk's stored bytes against their digest, if there is one.

        Raises:
            DigestMismatchError: they have another one.
        """
        digest = self.digest(index)
        if digest is None:
            return
        if self._padded and not matches(stored, digest):
            stored = _without_padding(stored)
        verify_frame(stored, digest)

    def decode(self, index: int, stored: bytes) -> bytes:
        """The chunk that its stored bytes hold; verify them before.

        Raises:
            ImageFormatError: not exactly one frame of exactly the chunk's length.
        """
        length = self.chunk(index).length
        if not self.compressed:
            if len(stored) != length:
                raise ImageFormatError(f"chunk of {len(stored)} bytes, not {length}")
            return stored
        try:
            return decompress_chunk(stored, length)
        except ImageFormatError:
            bare = _without_padding(stored) if self._padded else stored
            if len(bare) == len(stored):
                raise
        return decompress_chunk(bare, length)


def _without_padding(stored: bytes) -> bytes:
    """The zstd frame in front of skippable frames; all of it if it is anything else."""
    steps = walk_frames(len(stored))
    try:
        spans = run(steps, lambda need: stored[need.offset : need.offset + need.length])
    except LazyfsError:
        return stored
    if spans[0].skippable or not all(span.skippable for span in spans[1:]):
        return stored
    return stored[: spans[0].where.length]


def plain_table(size_bytes: int) -> ChunkTable:
    """A table over a blob that is the content itself; nothing but a tree proves such chunks."""
    offsets = range(0, size_bytes, PLAIN_CHUNK_BYTES)
    return ChunkTable(size_bytes, offsets, [*offsets, size_bytes], None, compressed=False)


def check_frames(
    frame_offsets: "array[int]", content_offsets: Sequence[int], content_size_bytes: int
) -> None:
    """Frames must follow each other without overlap, each of sane length for its chunk.

    Args:
        frame_offsets: where each begins, and behind them where the last one ends.
        content_offsets: where each chunk begins, increasing.
        content_size_bytes: where the last chunk ends.

    Raises:
        ImageFormatError: they do not.
    """
    end_of_all = frame_offsets[-1]
    if end_of_all >= MAX_CHUNKS_END:
        raise ImageFormatError(f"chunk table at offset {end_of_all}")
    for index, start in enumerate(content_offsets):
        begin, end = frame_offsets[index], frame_offsets[index + 1]
        if not begin < end <= end_of_all:
            raise ImageFormatError(
                f"chunk table: frame {index} begins at {begin} and ends at {end}, "
                f"the table begins at {end_of_all}"
            )
        last = index + 1 == len(content_offsets)
        chunk_bytes = (content_size_bytes if last else content_offsets[index + 1]) - start
        longest = 2 * chunk_bytes + FRAME_SLACK_BYTES
        if end - begin > longest:
            raise ImageFormatError(
                f"chunk table: frame {index} of {end - begin} bytes at {begin}, "
                f"at most {longest} are accepted"
            )

"""The digest of a content that comes in any order: hashed as far as it is there from its start."""

import hashlib

import trio

from lazyfs.layer.contentfile import ContentFile
from lazyfs.seekable.chunktable import ChunkTable

PIECE_BYTES = 4 << 20


class ContentHash:
    """SHA-256 of a file's content, taken behind the chunks that others write."""

    def __init__(self, file: ContentFile, table: ChunkTable, workers: trio.CapacityLimiter) -> None:
        """Hash what the chunks of ``table`` hold in ``file``; ``workers`` bounds the threads."""
        self._file = file
        self._table = table
        self._workers = workers
        self._done = bytearray(len(table))
        self._complete = 0
        """Chunks from the start that are all there."""
        self._more = trio.Event()

    def done(self, index: int) -> None:
        """Say that a chunk is in the file (or will never be)."""
        self._done[index] = 1
        if index == self._complete:
            end = self._done.find(0, index)
            self._complete = len(self._done) if end < 0 else end
            self._more.set()

    async def run(self) -> str:
        """Hash until all chunks are done; lower-case hexadecimal.

        Raises:
            OSError: the file cannot be read.
        """
        digest = hashlib.sha256()
        position = 0
        while position < self._table.content_size_bytes:
            if self._complete == len(self._done):
                end = self._table.content_size_bytes
            else:
                end = self._table.chunk(self._complete).offset
            if position == end:
                self._more = trio.Event()
                await self._more.wait()
                continue
            length = min(PIECE_BYTES, end - position)
            await trio.to_thread.run_sync(
                self._hash, digest, position, length, limiter=self._workers
            )
            position += length
        return digest.hexdigest()

    def _hash(self, digest: "hashlib._Hash", position: int, length: int) -> None:
        digest.update(self._file.read(position, length))

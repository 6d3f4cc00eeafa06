"""A file of this machine as a verified reader.

The file belongs to who mounts it and nothing says what its bytes must be, so there is
nothing to prove. Reads are done in place: they come from the page cache as a rule.
"""

import os
from contextlib import suppress
from pathlib import Path

from lazyfs.errors import SourceUnavailableError
from lazyfs.layer.counters import LayerCounters
from lazyfs.layer.paged import PagedReader
from lazyfs.layer.pages import PageMemory


class LocalFile(PagedReader):
    """Random access to a local EROFS image or one of its devices."""

    def __init__(self, number: int, path: Path, pages: PageMemory) -> None:
        """Open ``path``.

        Raises:
            OSError: it cannot be opened.
        """
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._path = path
        found = os.fstat(self._file)
        size_bytes = os.lseek(self._file, 0, os.SEEK_END)  # that of a block device, too
        super().__init__(number, size_bytes, pages, LayerCounters())
        self.identity = f"{found.st_dev}:{found.st_ino}:{size_bytes}:{found.st_mtime_ns}"
        """Tells this file in this state from any other."""

    def proven_nowait(self, offset: int, length: int) -> bytes | None:
        """See ``PagedReader.proven_nowait``."""
        with suppress(SourceUnavailableError):
            return self._read(offset, length)
        return None

    async def read_proven(self, offset: int, length: int) -> bytes:
        """Bytes of the file.

        Raises:
            SourceUnavailableError: the disk failed, or the file was cut short meanwhile.
        """
        return self._read(offset, length)

    def _read(self, offset: int, length: int) -> bytes:
        try:
            data = os.pread(self._file, length, offset)
        except OSError as error:
            raise SourceUnavailableError(f"{self._path}: {error}") from error
        if len(data) != length:
            raise SourceUnavailableError(
                f"{self._path}: {len(data)} bytes at offset {offset}, wanted {length}"
            )
        return data

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

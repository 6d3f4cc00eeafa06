"""A layer's content being put together in a file, blocks of zeros left out as holes.

The file is the materialised layer: the content, then (where the content itself does not hold
it) the dm-verity payload at the next multiple of the tree's block size. Every method blocks and
may be called from any thread.
"""

import os

HOLE_BYTES = 4096
"""Aligned blocks of this size are left out when they are zero; what file systems use."""

_ZEROS = bytes(HOLE_BYTES)


class ContentFile:
    """Random access to an open file, which stays the caller's."""

    def __init__(self, fd: int, path: str) -> None:
        """Take a file; ``path`` names it in errors."""
        self.fd = fd
        self._path = path

    def resize(self, size_bytes: int) -> None:
        """Cut the file, or make it longer by a hole.

        Raises:
            OSError: naming the file.
        """
        try:
            os.ftruncate(self.fd, size_bytes)
        except OSError as error:
            raise self._named(error) from error

    def write(self, offset: int, data: bytes, *, holes: bool = True) -> None:
        """Write ``data``.

        Args:
            offset: in the file.
            data: any bytes.
            holes: leave blocks of zeros out. Only where nothing was written before.

        Raises:
            OSError: naming the file; the disk is full, perhaps.
        """
        view = memoryview(data)
        runs = _runs(offset, data) if holes else [(0, len(data))]
        try:
            for start, end in runs:
                while start < end:
                    start += os.pwrite(self.fd, view[start:end], offset + start)
        except OSError as error:
            raise self._named(error) from error

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes.

        Raises:
            OSError: naming the file; it is shorter, or the disk failed.
        """
        try:
            data = os.pread(self.fd, length, offset)
            while len(data) < length:
                piece = os.pread(self.fd, length - len(data), offset + len(data))
                if not piece:
                    raise OSError(f"{self._path}: ends at {offset + len(data)}")
                data += piece
        except OSError as error:
            raise self._named(error) from error
        return data

    def _named(self, error: OSError) -> OSError:
        return OSError(error.errno, error.strerror, self._path) if error.errno else error


def _runs(offset: int, data: bytes) -> list[tuple[int, int]]:
    """The parts of ``data`` that are to be written: all but aligned blocks of zeros."""
    runs: list[tuple[int, int]] = []
    start = 0
    end = min(len(data), -offset % HOLE_BYTES or HOLE_BYTES)
    while start < len(data):
        if data[start:end] != _ZEROS[: end - start]:
            if runs and runs[-1][1] == start:
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((start, end))
        start, end = end, min(len(data), end + HOLE_BYTES)
    return runs

"""Raw EROFS images while they are being converted: random access, from any thread."""

import os
from typing import BinaryIO, Protocol

from lazyfs.convert.tarstream import Readable
from lazyfs.errors import ConversionError

COPY_BYTES = 1 << 20

_SUPERBLOCK_OFFSET = 1024
_EROFS_MAGIC = bytes.fromhex("e2e1f5e0")


class Image(Protocol):
    """A finished image, as the builder gives it too; ``close`` gives its file up."""

    @property
    def size_bytes(self) -> int:
        """Length of the image."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes; thread-safe."""
        ...

    def close(self) -> None:
        """Close the file, which removes it if it is a temporary one."""
        ...


class FileImage:
    """An image that lies in a file as it is."""

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        """Take the first ``size_bytes`` of ``file``, which belongs to the image now."""
        self._file = file
        self._size_bytes = size_bytes

    @property
    def size_bytes(self) -> int:
        """Length of the image."""
        return self._size_bytes

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes; thread-safe.

        Raises:
            OSError: the file cannot be read, or became shorter.
        """
        pieces: list[bytes] = []
        while length:
            piece = os.pread(self._file.fileno(), length, offset)
            if not piece:
                raise OSError(f"temporary image ends at {offset}")
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def copy_image(source: Readable, spool: BinaryIO) -> FileImage:
    """Keep an image that comes as a stream, in an empty file (blocks).

    Raises:
        ConversionError: it is not an EROFS image.
    """
    size = 0
    while piece := source.read(COPY_BYTES):
        spool.write(piece)
        size += len(piece)
    spool.flush()
    image = FileImage(spool, size)
    end = _SUPERBLOCK_OFFSET + len(_EROFS_MAGIC)
    if size < end or image.read(_SUPERBLOCK_OFFSET, len(_EROFS_MAGIC)) != _EROFS_MAGIC:
        raise ConversionError("not an EROFS image: there is no superblock")
    return image

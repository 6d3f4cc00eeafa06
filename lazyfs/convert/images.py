"""Raw EROFS images while they are being converted: random access, from any thread."""

import os
import tempfile
from collections.abc import Callable, Sequence
from typing import BinaryIO, Protocol, cast

from lazyfs.convert.tarstream import Readable
from lazyfs.errors import ConversionError

COPY_BYTES = 1 << 20

_SUPERBLOCK_OFFSET = 1024
_EROFS_MAGIC = bytes.fromhex("e2e1f5e0")


def open_temporary() -> BinaryIO:
    """An unnamed file: whatever ends this process, nothing is left of it."""
    return cast(BinaryIO, tempfile.TemporaryFile(prefix="lazyfs-convert-"))


def read_at(file: BinaryIO, offset: int, length: int) -> bytes:
    """Exactly ``length`` bytes of a file; thread-safe.

    Raises:
        OSError: it cannot be read, or became shorter.
    """
    pieces: list[bytes] = []
    while length:
        piece = os.pread(file.fileno(), length, offset)
        if not piece:
            raise OSError(f"temporary file ends at {offset}")
        pieces.append(piece)
        offset += len(piece)
        length -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def write_at(file: BinaryIO, offset: int, data: bytes) -> None:
    """Write all of ``data`` at ``offset``; thread-safe.

    Raises:
        OSError: the disk is full.
    """
    view = memoryview(data)
    while view:
        written = os.pwrite(file.fileno(), view, offset)
        view = view[written:]
        offset += written


class Image(Protocol):
    """A finished image, as the builder gives it too; its file must stay open."""

    @property
    def size_bytes(self) -> int:
        """Length of the image."""
        ...

    @property
    def borders(self) -> Sequence[int]:
        """Where chunks of any size should begin, increasing."""
        ...

    @property
    def early_start(self) -> int:
        """Where those bytes begin whose chunks were certain before the image was finished."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes; thread-safe."""
        ...


class FileImage:
    """An image that lies in a file as it is."""

    early_start = 0

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        """Take the first ``size_bytes`` of ``file``."""
        self._file = file
        self._size_bytes = size_bytes

    @property
    def size_bytes(self) -> int:
        """Length of the image."""
        return self._size_bytes

    @property
    def borders(self) -> Sequence[int]:
        """None are known."""
        return ()

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes; thread-safe.

        Raises:
            OSError: the file cannot be read, or became shorter.
        """
        return read_at(self._file, offset, length)


class PaddedImage:
    """An image with zeros behind it, up to a whole number of blocks."""

    def __init__(self, image: Image, block_size_bytes: int) -> None:
        """Show ``image``."""
        self._image = image
        self.early_start = image.early_start
        self.size_bytes = -(-image.size_bytes // block_size_bytes) * block_size_bytes

    @property
    def borders(self) -> Sequence[int]:
        """Those of the image."""
        return self._image.borders

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes; thread-safe."""
        inside = max(0, min(length, self._image.size_bytes - offset))
        data = self._image.read(offset, inside) if inside else b""
        return data + bytes(length - inside)


def copy_image(
    source: Readable,
    spool: BinaryIO,
    image_bytes: int | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> FileImage:
    """Keep an image that comes as a stream, in an empty file (blocks).

    Args:
        source: the image, and perhaps more behind it.
        spool: empty; the image lies in it then.
        image_bytes: length of the image; None: all that comes.
        on_bytes: told how many bytes of the image are in the spool.

    Raises:
        ConversionError: it is not an EROFS image.
    """
    size = 0
    while piece := source.read(COPY_BYTES):
        spool.write(piece)
        size += len(piece)
        if on_bytes is not None:
            spool.flush()
            on_bytes(size if image_bytes is None else min(size, image_bytes))
    spool.flush()
    if image_bytes is not None:
        if image_bytes > size:
            raise ConversionError(f"image of {image_bytes} bytes, only {size} came")
        size = image_bytes
    image = FileImage(spool, size)
    end = _SUPERBLOCK_OFFSET + len(_EROFS_MAGIC)
    if size < end or image.read(_SUPERBLOCK_OFFSET, len(_EROFS_MAGIC)) != _EROFS_MAGIC:
        raise ConversionError("not an EROFS image: there is no superblock")
    return image

"""What a verification could have of a layer's content."""

from bisect import bisect_right

from lazyfs.errors import DigestMismatchError, TruncatedRecordError
from lazyfs.layer.contentfile import ContentFile
from lazyfs.model import ByteRange


class Content:
    """What could be had of a layer's content."""

    def __init__(self, file: ContentFile, size_bytes: int, broken: list[ByteRange]) -> None:
        """Take a file and what is missing in it.

        Args:
            file: begins with the image.
            size_bytes: of the image.
            broken: ranges that could not be had, in order.
        """
        self.size_bytes = size_bytes
        self._file = file
        self._broken = broken

    def check(self, offset: int, length: int) -> None:
        """Check that bytes are there.

        Raises:
            TruncatedRecordError: they pass the end.
            DigestMismatchError: they lie in something broken.
        """
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise TruncatedRecordError(
                f"{length} bytes at offset {offset} pass the end of an image of "
                f"{self.size_bytes} bytes"
            )
        index = bisect_right(self._broken, offset, key=lambda where: where.offset) - 1
        for where in self._broken[max(0, index) : index + 2]:
            if where.offset < offset + length and offset < where.end:
                raise DigestMismatchError(
                    f"{length} bytes at offset {offset} lie in what is broken "
                    f"({where.length} bytes at {where.offset})"
                )

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the image.

        Raises:
            TruncatedRecordError, DigestMismatchError: as ``check``.
            OSError: the disk failed.
        """
        self.check(offset, length)
        return self._file.read(offset, length)

"""Several ranges of a blob by one answer: bodies of type ``multipart/byteranges``.

Pure. RFC 9110, 14.6 and 15.3.7.2; RFC 2046, 5.1. A server may send other parts than it was asked
for, in another order: whoever does is asked for one range at a time.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from registry.errors import ContentError, OneRangeError, ProtocolError, TransportError
from registry.ranges import Range, check_content_range

MAX_HEAD_BYTES = 2048
"""Of what stands before a part, and behind the last one."""

_MULTIPART = re.compile(
    r"""multipart/byteranges\s*;\s*boundary=("?)([\w'()+,./:=? -]{0,69}[\w'()+,./:=?-])\1\s*""",
    re.ASCII | re.IGNORECASE,
)
_END_OF_HEAD = b"\r\n\r\n"


def delimiter_of(headers: Mapping[str, str], what: str) -> bytes:
    """What stands before each range of an answer with these headers.

    Raises:
        OneRangeError: they announce something else than several ranges.
    """
    match = _MULTIPART.fullmatch(headers.get("content-type", ""))
    if not match:
        raise OneRangeError(f"{what}: not several ranges by one answer")
    return b"--" + match[2].encode()


class Parts:
    """Takes the ranges out of such a body, as it comes."""

    def __init__(
        self, headers: Mapping[str, str], ranges: Sequence[Range], size_bytes: int, what: str
    ) -> None:
        """Expect ``ranges`` of a blob of ``size_bytes``, in that order; ``what`` is for messages.

        Raises:
            OneRangeError: ``headers`` announce something else.
        """
        self._delimiter = delimiter_of(headers, what)
        self._ranges = iter(ranges)
        self._next: Range | None = next(self._ranges)
        self._size_bytes = size_bytes
        self._what = what
        self._head = bytearray()
        self._missing = 0
        """Bytes of the part that has begun."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The bytes of ranges that are in the next bytes of the body; none is empty.

        Raises:
            ContentError: the blob has another size, or more comes than the ranges.
            OneRangeError: other ranges, or something else.
        """
        position = 0
        while position < len(data):
            if self._missing:
                part = data[position : position + self._missing]
                self._missing -= len(part)
                position += len(part)
                yield part
            else:
                position += self._take_head(data[position : position + MAX_HEAD_BYTES])

    def finish(self) -> None:
        """The body has ended.

        Raises:
            TransportError: too early.
        """
        if self._missing or self._next is not None:
            raise TransportError(f"{self._what}: answer with several ranges ends too early")

    def _take_head(self, data: bytes) -> int:
        """Take what stands before a part, as far as it is there; how much of ``data`` that is."""
        had = len(self._head)
        self._head += data
        end = self._head.find(_END_OF_HEAD, max(0, had - len(_END_OF_HEAD) + 1))
        taken = len(data) if end < 0 or self._next is None else end + len(_END_OF_HEAD) - had
        if had + taken > MAX_HEAD_BYTES:
            raise ContentError(f"{self._what}: too much between the ranges of an answer")
        if self._next is None or end < 0:
            return taken
        self._check(bytes(self._head[:end]), *self._next)
        self._missing = self._next[1]
        self._next = next(self._ranges, None)
        self._head.clear()
        return taken

    def _check(self, head: bytes, offset: int, length: int) -> None:
        """Whether a part is the one that is wanted next."""
        delimiter, *lines = head.removeprefix(b"\r\n").split(b"\r\n")
        if delimiter.rstrip(b" \t") != self._delimiter:
            raise OneRangeError(f"{self._what}: answer with several ranges has no delimiter")
        fields = (line.decode("latin-1").partition(":") for line in lines)
        values = [value.strip() for name, _, value in fields if name.lower() == "content-range"]
        try:
            header = values[0] if len(values) == 1 else None
            check_content_range(header, offset, length, self._size_bytes, self._what)
        except ProtocolError as error:
            raise OneRangeError(str(error)) from error

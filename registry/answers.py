"""Whether an answer to a range request is the range, and its bytes exactly."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import httpx

from registry.byteranges import Parts, delimiter_of
from registry.endpoint import refuse_page
from registry.errors import ContentError, OneRangeError, TransportError
from registry.manifest import Descriptor
from registry.ranges import Range, check_content_range
from registry.wire import Wire

OK, PARTIAL = 200, 206


@dataclass(frozen=True, slots=True)
class Wanted:
    """A range of a blob, or several, of at least one byte each."""

    blob: Descriptor
    ranges: tuple[Range, ...]
    what: str
    """The blob, for messages."""

    @property
    def length(self) -> int:
        """Bytes in all of them."""
        return sum(length for _, length in self.ranges)

    @property
    def only(self) -> tuple[int, int]:
        """Beginning and end of the only range."""
        ((start, length),) = self.ranges
        return start, start + length

    @property
    def are_several(self) -> bool:
        """Whether it is more than one range."""
        return len(self.ranges) > 1

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the blob: then no range is asked for."""
        return not self.are_several and self.length == self.blob.size_bytes


def check_head(response: httpx.Response, wanted: Wanted) -> None:
    """Check the headers of an answer with the range (206) or the whole blob (200).

    Raises:
        ContentError: another length, or another size of the whole.
        OneRangeError: several ranges were asked for, and something else came.
        TransportError: another part, or a web page.
    """
    size_bytes = wanted.blob.size_bytes
    if wanted.are_several:
        if response.status_code != PARTIAL:
            raise OneRangeError(f"{wanted.what}: not several ranges by one answer")
        delimiter_of(response.headers, wanted.what)
        return
    refuse_page(response, wanted.blob.media_type)
    if response.status_code == PARTIAL:
        header = response.headers.get("content-range")
        check_content_range(header, *wanted.ranges[0], size_bytes, wanted.what)
        _check_length(response, wanted.length, wanted.what)
    else:
        _check_length(response, size_bytes, wanted.what)


def _check_length(response: httpx.Response, wanted: int, what: str) -> None:
    header = response.headers.get("content-length")
    if header is not None and header != str(wanted):
        raise ContentError(f"{what}: answer of {header[:20]} bytes, wanted {wanted}")


async def exact_body(
    wire: Wire, response: httpx.Response, wanted: Wanted
) -> AsyncGenerator[bytes, None]:
    """The wanted bytes, with which the body begins; one that ends too early is an error.

    So is one that goes on, unless it is the whole blob of which the beginning is wanted. Several
    ranges come one after the other.

    Raises:
        ContentError: too long.
        OneRangeError: other ranges than those that are wanted.
        TransportError: too short, or cut.
    """
    if wanted.are_several:
        parts = Parts(response.headers, wanted.ranges, wanted.blob.size_bytes, wanted.what)
        async with aclosing(wire.pieces(response)) as pieces:
            async for piece in pieces:
                for data in parts.feed(piece):
                    yield data
        parts.finish()
        return
    missing = wanted.length
    must_end = response.status_code == PARTIAL or wanted.is_whole
    async with aclosing(wire.pieces(response)) as pieces:
        async for piece in pieces:
            if len(piece) > missing:
                if must_end:
                    raise ContentError(
                        f"{wanted.what}: answer is longer than {wanted.length} bytes"
                    )
                piece = piece[:missing]
            missing -= len(piece)
            if piece:
                yield piece
            if not missing and not must_end:
                return
    if missing:
        raise TransportError(f"{wanted.what}: answer lacks {missing} of {wanted.length} bytes")

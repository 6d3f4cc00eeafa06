"""Pieces of blobs: what is fetched, checked and stored as a whole."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from cache.key import ChunkKey
from lazyfs.errors import SourceUnavailableError
from lazyfs.model import ByteRange


@dataclass(frozen=True, slots=True)
class Piece:
    """One unit of a blob that is fetched, checked and stored as a whole."""

    key: ChunkKey
    where: ByteRange
    """In the blob."""
    what: str
    """For a log line: ``chunk 7``."""
    take_in: Callable[[bytes], bytes]
    """From the bytes of ``where`` to the bytes to store; pure, slow, run in a thread.

    Raises ``LazyfsError`` where the bytes are not the promised ones.
    """


def as_it_is(data: bytes) -> bytes:
    """``Piece.take_in`` of what is proven when it is used, not on arrival."""
    return data


async def cut(stream: AsyncIterator[bytes], lengths: Sequence[int]) -> AsyncGenerator[bytes, None]:
    """Cut a stream into pieces of the given lengths.

    Raises:
        SourceUnavailableError: the stream ends early.
    """
    parts: list[bytes] = []
    have = 0
    queue = iter(lengths)
    length = next(queue, None)
    async for data in stream:
        if length is None:
            return  # more than was asked for
        parts.append(data)
        have += len(data)
        if have < length:
            continue
        joined = memoryview(b"".join(parts))
        start = 0
        while length is not None and have - start >= length:
            yield bytes(joined[start : start + length])
            start += length
            length = next(queue, None)
        parts = [bytes(joined[start:])] if start < have else []
        have -= start
    if length is not None:
        raise SourceUnavailableError(f"the stream ended {length - have} bytes early")

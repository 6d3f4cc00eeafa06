"""The bytes that a blob's encoding holds, as a blocking stream."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Protocol, cast

import zstandard

from lazyfs.errors import ImageFormatError
from lazyfs.seekable.frames import MAX_WINDOW_BYTES
from lazyfs.seekable.mediatypes import LayerEncoding


class Readable(Protocol):
    """What decoders read from, and are."""

    def read(self, size_bytes: int, /) -> bytes:
        """At most ``size_bytes`` bytes; none at the end."""
        ...


@contextmanager
def decoding(stream: Readable, encoding: LayerEncoding) -> Iterator[Readable]:
    """The decoded bytes of a blocking stream.

    Raises:
        ImageFormatError: in the block, by reading: the stream is broken.
    """
    try:
        if encoding is LayerEncoding.ZSTD:
            decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
            yield decompressor.stream_reader(cast("IO[bytes]", stream), read_across_frames=True)
        elif encoding is LayerEncoding.GZIP:
            yield gzip.GzipFile(fileobj=cast("IO[bytes]", stream))
        else:
            yield stream
    except zstandard.ZstdError as error:
        raise ImageFormatError(f"not a zstd stream: {error}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ImageFormatError(f"not a gzip stream: {error}") from error

"""From the bytes of a layer blob to the bytes of its tar: gzip, zstd or none, told by magic.

Docker and containerd go by the magic too: media types out there are often wrong. All readers
block and run in a worker thread. Memory is bounded: output is produced as it is asked for.
"""

import hashlib
import zlib

import zstandard

from lazyfs.convert.tarstream import Readable
from lazyfs.errors import ConversionError
from lazyfs.seekable.frames import MAX_WINDOW_BYTES

MAX_DECODED_BYTES = 1 << 40
"""A layer that decodes to more is refused, so that a bomb ends somewhere."""

INPUT_BYTES = 128 << 10

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE_TAIL = b"\x2a\x4d\x18"
_UNREAD = {b"BZh": "bzip2", b"\xfd7z": "xz"}
_GZIP_WBITS = 16 + zlib.MAX_WBITS


class DecodedLayer:
    """The decoded bytes of a blob, hashed as they pass."""

    def __init__(self, blob: Readable, *, compressed: bool = True) -> None:
        """Look at the first bytes of ``blob`` to choose a decoder.

        Args:
            blob: the layer as it comes.
            compressed: whether it may be; if not, its first bytes mean nothing.

        Raises:
            ConversionError: a compression that lazyfs does not know.
        """
        self._hash = hashlib.sha256()
        self.size_bytes = 0
        head = _Pushback(blob)
        begins = head.peek(4)
        self._decoder: Readable
        if not compressed:
            self._decoder = head
        elif begins.startswith(_GZIP_MAGIC):
            self._decoder = _Gzip(head)
        elif begins == _ZSTD_MAGIC or (begins[1:] == _SKIPPABLE_TAIL and begins[0] & 0xF0 == 0x50):
            self._decoder = _Zstd(head)
        else:
            for magic, name in _UNREAD.items():
                if begins.startswith(magic):
                    raise ConversionError(f"compressed with {name}, which is not supported")
            self._decoder = head

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none at the end.

        Raises:
            ConversionError: the compressed stream is broken, or decodes to too much.
        """
        data = self._decoder.read(size)
        self.size_bytes += len(data)
        if self.size_bytes > MAX_DECODED_BYTES:
            raise ConversionError(f"decodes to more than {MAX_DECODED_BYTES} bytes")
        self._hash.update(data)
        return data

    def drain(self) -> None:
        """Read what nobody asked for (a tar is often padded)."""
        while self.read(INPUT_BYTES):
            pass

    def sha256(self) -> str:
        """Lower-case hexadecimal digest of all that was read."""
        return self._hash.hexdigest()


class _Pushback:
    """A reader whose first bytes can be looked at."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._head = b""

    def peek(self, size_bytes: int) -> bytes:
        while len(self._head) < size_bytes:
            piece = self._source.read(size_bytes - len(self._head))
            if not piece:
                break
            self._head += piece
        return self._head

    def read(self, size: int, /) -> bytes:
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
            return data
        return self._source.read(size)


class _Gzip:
    """One gzip member or several, one after the other (RFC 1952, section 2.2)."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._member: zlib._Decompress | None = zlib.decompressobj(_GZIP_WBITS)
        self._input = b""

    def read(self, size: int, /) -> bytes:
        while self._member is not None:
            if not self._input:
                self._input = self._source.read(INPUT_BYTES)
                if not self._input:
                    raise ConversionError("gzip stream ends early")
            try:
                data = self._member.decompress(self._input, size)
            except zlib.error as error:
                raise ConversionError(f"broken gzip stream: {error}") from error
            self._input = self._member.unconsumed_tail
            if self._member.eof:
                self._input = self._member.unused_data
                self._member = self._next_member()
            if data:
                return data
        return b""

    def _next_member(self) -> "zlib._Decompress | None":
        """What follows a member: another one, or zeros up to the end."""
        while True:
            self._input = self._input.lstrip(b"\0")
            if self._input:
                return zlib.decompressobj(_GZIP_WBITS)
            self._input = self._source.read(INPUT_BYTES)
            if not self._input:
                return None


class _Zstd:
    """Frames one after the other, skippable ones among them.

    A stream that ends inside a frame just ends here: the digest of the content tells.
    """

    def __init__(self, source: Readable) -> None:
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
        self._reader = decompressor.stream_reader(
            source,  # type: ignore[arg-type]  # asks for a whole IO, uses read() only
            read_size=INPUT_BYTES,
            read_across_frames=True,
            closefd=False,
        )

    def read(self, size: int, /) -> bytes:
        try:
            return self._reader.read(size)
        except zstandard.ZstdError as error:
            raise ConversionError(f"broken zstd stream: {error}") from error

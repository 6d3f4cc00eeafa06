"""A tar stream as entries: extensions applied, data handed out in pieces, the end checked.

Only ``read`` of the stream is used, and all of it is read, also behind the end marker. Memory
is bounded by one piece (1 MiB), one extended header (``MAX_EXTENSION_SIZE``) and one sparse map.
"""

import enum
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from lazyfs.convert.tarheader import (
    BLOCK,
    MAX_SPARSE_SEGMENTS,
    ZERO_BLOCK,
    TarHeader,
    decode_decimal,
    decode_header,
    decode_pax_records,
    decode_time_ns,
    old_gnu_sparse,
    old_gnu_sparse_continued,
    pax_sparse_0,
    pax_xattrs,
    segments_of,
)
from lazyfs.errors import ConversionError
from lazyfs.model import ByteRange

PIECE = 1 << 20
"""Bytes read and handed out at a time."""
MAX_EXTENSION_SIZE = 4 << 20
"""Bytes of one long name or PAX header (Go's ``archive/tar`` takes 1 MiB)."""


class Readable(Protocol):
    """A stream to read; ``read`` may return less than asked, and nothing at the end."""

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes."""
        ...


class EntryKind(enum.Enum):
    """What an entry makes."""

    FILE = enum.auto()
    HARD_LINK = enum.auto()
    SYMLINK = enum.auto()
    CHARACTER_DEVICE = enum.auto()
    BLOCK_DEVICE = enum.auto()
    DIRECTORY = enum.auto()
    FIFO = enum.auto()


class TarEntry(NamedTuple):
    """One entry, all extensions applied; names are the archive's bytes, unchecked."""

    kind: EntryKind
    path: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size_bytes: int
    """Size of the file with its holes; 0 unless it is a file."""
    link_target: bytes
    major: int
    minor: int
    xattrs: dict[bytes, bytes]
    segments: list[ByteRange]
    """Where a file has data; the stream holds the segments one after the other."""


_KINDS = {
    b"\0": EntryKind.FILE,
    b"0": EntryKind.FILE,
    b"1": EntryKind.HARD_LINK,
    b"2": EntryKind.SYMLINK,
    b"3": EntryKind.CHARACTER_DEVICE,
    b"4": EntryKind.BLOCK_DEVICE,
    b"5": EntryKind.DIRECTORY,
    b"6": EntryKind.FIFO,
    b"7": EntryKind.FILE,
    b"D": EntryKind.DIRECTORY,
    b"S": EntryKind.FILE,
}
_WITH_DATA = (b"\0", b"0", b"7", b"D", b"S")
"""Types whose size is that of following data; other sizes mean nothing, as in Go."""
_VOLUME_LABEL = b"V"


class _Extension:
    """What precedes one header: GNU long names and PAX records."""

    def __init__(self) -> None:
        self.name: bytes | None = None
        self.link_name: bytes | None = None
        self.records: dict[bytes, bytes] = {}
        self.in_order: list[tuple[bytes, bytes]] = []
        self.used = False


class TarReader:
    """Reads the entries of one tar stream."""

    def __init__(self, tar: Readable, on_progress: Callable[[int], None] | None = None) -> None:
        """Read from ``tar``, telling ``on_progress`` how many bytes were read in all."""
        self._source = _Source(tar, on_progress)
        self._block = b""
        self._data_left = 0
        self._padding = 0

    def entries(self) -> Iterator[TarEntry]:
        """The entries in order; data of an entry must be read before the next.

        Raises:
            ConversionError: the stream is damaged, truncated or of an unknown kind.
        """
        while True:
            extension = _Extension()
            offset = self._source.position
            try:
                header = self._header_behind(extension)
                if header is None:
                    return
                entry = self._entry(header, extension)
            except ConversionError as error:
                raise ConversionError(f"tar entry at byte {offset}: {error}") from None
            if entry is not None:
                yield entry
            self._skip(self._data_left + self._padding)

    def data(self) -> Iterator[bytes]:
        """The stored bytes of the current entry that were not read yet, in pieces.

        Raises:
            ConversionError: the stream ends before.
        """
        while self._data_left:
            piece = self._source.exactly(min(PIECE, self._data_left))
            self._data_left -= len(piece)
            yield piece

    def _skip(self, length: int) -> None:
        while length:
            length -= len(self._source.exactly(min(PIECE, length)))
        self._data_left = self._padding = 0

    def _next_header(self) -> TarHeader | None:
        """The next header block; None at the end, which must be nothing but zeros."""
        self._block = self._source.up_to(BLOCK)
        if not self._block:
            return None
        if len(self._block) < BLOCK:
            raise ConversionError(f"the stream ends after {len(self._block)} bytes of a header")
        if self._block != ZERO_BLOCK:
            return decode_header(self._block)
        while piece := self._source.up_to(PIECE):
            if piece.count(0) != len(piece):
                raise ConversionError("data behind the end marker")
        return None

    def _header_behind(self, extension: _Extension) -> TarHeader | None:
        """The next header that is no extension; ``extension`` gets those before it."""
        while (header := self._next_header()) is not None:
            if header.type_flag == b"g":
                # Containerd and Docker read global headers and use nothing of them, so that is
                # what the author of a layer has seen; umoci refuses them.
                self._body(header)
            elif header.type_flag in (b"x", b"X"):
                extension.in_order = decode_pax_records(self._body(header))
                extension.records.update(extension.in_order)
                extension.used = True
            elif header.type_flag == b"L":
                extension.name = self._body(header).partition(b"\0")[0]
                extension.used = True
            elif header.type_flag == b"K":
                extension.link_name = self._body(header).partition(b"\0")[0]
                extension.used = True
            else:
                return header
        if extension.used:
            raise ConversionError("the stream ends behind an extended header")
        return None

    def _body(self, header: TarHeader) -> bytes:
        if header.size > MAX_EXTENSION_SIZE:
            raise ConversionError(
                f"extended header of {header.size} bytes, at most {MAX_EXTENSION_SIZE}"
            )
        body = self._source.exactly(header.size)
        self._source.exactly(-header.size % BLOCK)
        return body

    def _entry(self, header: TarHeader, extension: _Extension) -> TarEntry | None:
        """Apply the extensions and prepare for reading data; None for a volume label."""
        # An empty value takes a record back (POSIX), except that an xattr may be empty.
        records = extension.records
        path = records.get(b"path") or extension.name or header.name
        path = records.get(b"GNU.sparse.name") or path
        size = header.size
        if text := records.get(b"size"):
            size = decode_decimal(text, "size")
        if size < 0:
            raise ConversionError(f"size {size}")
        has_data = header.type_flag in (*_WITH_DATA, _VOLUME_LABEL)
        self._data_left = size if has_data else 0
        self._padding = -self._data_left % BLOCK
        if header.type_flag == _VOLUME_LABEL:
            return None
        kind = _KINDS.get(header.type_flag)
        if kind is None:
            raise ConversionError(f"{path!r}: entry of type {header.type_flag!r}")
        if kind is EntryKind.FILE and path.endswith(b"/"):
            kind = EntryKind.DIRECTORY
        real_size = 0
        segments: list[ByteRange] = []
        if kind is EntryKind.FILE:
            real_size, segments = self._sparse_map(header, extension) or (
                size,
                [ByteRange(0, size)],
            )
            if sum(segment.length for segment in segments) != self._data_left:
                raise ConversionError(
                    f"{path!r}: sparse map does not fit {self._data_left} bytes of data"
                )
        return TarEntry(
            kind=kind,
            path=path,
            mode=header.mode,
            uid=_decimal_or(records.get(b"uid"), header.uid),
            gid=_decimal_or(records.get(b"gid"), header.gid),
            mtime_ns=(
                decode_time_ns(records[b"mtime"])
                if records.get(b"mtime")
                else header.mtime_s * 1_000_000_000
            ),
            size_bytes=real_size,
            link_target=records.get(b"linkpath") or extension.link_name or header.link_name,
            major=header.major,
            minor=header.minor,
            xattrs=pax_xattrs(records) if records else {},
            segments=segments,
        )

    def _sparse_map(
        self, header: TarHeader, extension: _Extension
    ) -> tuple[int, list[ByteRange]] | None:
        """Real size and map of a sparse file, in any of the four GNU formats."""
        if header.type_flag == b"S":
            real_size, part = old_gnu_sparse(self._block)
            segments = part.segments
            while part.continues:
                part = old_gnu_sparse_continued(self._source.exactly(BLOCK))
                segments += part.segments
                if len(segments) > MAX_SPARSE_SEGMENTS:
                    raise ConversionError(f"sparse map of more than {MAX_SPARSE_SEGMENTS} segments")
            return real_size, segments
        records = extension.records
        if records.get(b"GNU.sparse.major") == b"1" and records.get(b"GNU.sparse.minor") == b"0":
            real_size = decode_decimal(records.get(b"GNU.sparse.realsize", b""), "sparse size")
            return real_size, self._sparse_map_in_data()
        old_map = pax_sparse_0(extension.in_order)
        if old_map is None:
            return None
        return decode_decimal(records.get(b"GNU.sparse.size", b""), "sparse size"), old_map

    def _sparse_map_in_data(self) -> list[ByteRange]:
        """The map of the PAX sparse format 1.0: decimal lines before the data, in whole blocks."""
        numbers: list[bytes] = []
        rest = b""
        wanted = 1
        while len(numbers) < wanted:
            if self._data_left < BLOCK or len(rest) > BLOCK:
                raise ConversionError("sparse map without an end")
            *lines, rest = (rest + self._source.exactly(BLOCK)).split(b"\n")
            self._data_left -= BLOCK
            if not numbers and lines:
                count = decode_decimal(lines[0], "sparse map length")
                if not 0 <= count <= MAX_SPARSE_SEGMENTS:
                    raise ConversionError(f"sparse map of {count} segments")
                wanted = 1 + 2 * count
            numbers += lines
        return segments_of(numbers[1:wanted])


def _decimal_or(text: bytes | None, otherwise: int) -> int:
    return decode_decimal(text, "owner") if text else otherwise


class _Source:
    """Exact reads from a stream, with the position."""

    def __init__(self, tar: Readable, on_progress: Callable[[int], None] | None) -> None:
        self._tar = tar
        self._on_progress = on_progress
        self._buffer = b""
        self._index = 0
        self._read = 0

    @property
    def position(self) -> int:
        """Bytes handed out."""
        return self._read - len(self._buffer) + self._index

    def up_to(self, length: int) -> bytes:
        """``length`` bytes, fewer only at the end of the stream."""
        end = self._index + length
        if end <= len(self._buffer):
            taken = self._buffer[self._index : end]
            self._index = end
            return taken
        parts = [self._buffer[self._index :]]
        missing = length - len(parts[0])
        while missing:
            self._buffer = self._tar.read(PIECE)
            self._index = min(missing, len(self._buffer))
            if not self._buffer:
                break
            self._read += len(self._buffer)
            if self._on_progress is not None:
                self._on_progress(self._read)
            parts.append(self._buffer[: self._index])
            missing -= self._index
        return b"".join(parts)

    def exactly(self, length: int) -> bytes:
        """``length`` bytes.

        Raises:
            ConversionError: the stream ends before.
        """
        data = self.up_to(length)
        if len(data) != length:
            raise ConversionError(
                f"the stream ends at byte {self.position}, {length - len(data)} bytes early"
            )
        return data

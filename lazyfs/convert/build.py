"""From a tar stream to an EROFS image: tar reader, image builder and spool put together.

The image is metadata followed by file data, and metadata is known only at the end of the tar.
So file data goes to a spool as it comes, the metadata behind it, and ``BuiltImage`` shows the
two in their right order, and hot data before the rest. Nothing is unpacked and nothing is written
twice.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from lazyfs.convert.below import NOTHING_BELOW, Below, Lookups, add_entry, fill_gaps
from lazyfs.convert.cutting import EarlyCut, FileBorders
from lazyfs.convert.hot import FrontLayout
from lazyfs.convert.images import read_at
from lazyfs.convert.tarstream import Readable, TarEntry, TarReader
from lazyfs.erofs.build.builder import ImageBuilder
from lazyfs.erofs.build.front import HotRange
from lazyfs.erofs.build.lower import LowerNames
from lazyfs.erofs.build.metadata import BLOCK_SIZE
from lazyfs.erofs.build.order import BlockSpan, DataOrder
from lazyfs.erofs.build.paths import shown
from lazyfs.errors import ConversionError
from lazyfs.model import ByteRange

WHITEOUT_PREFIX = b".wh."
META_PREFIX = b".wh..wh."
OPAQUE_MARKER = b".wh..wh..opq"

CHUNKS_FOR_METADATA_APART = 8
"""With file data for this many chunks, the first of them begins at a chunk's border."""


EARLY_BYTES = 1 << 20
"""How often it is looked which chunks are certain."""

OnChunks = Callable[[Sequence[ByteRange]], None]


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What an image depends on beside the tar."""

    chunk_size_bytes: int = BLOCK_SIZE
    """Of the chunks that the image will be cut into."""
    free_chunks: bool = False
    """Whether chunks may begin anywhere. Else the file data of an image with much of it begin at a
    multiple of the chunk size, so that the metadata have chunks of their own."""
    file_borders: bool = False
    """Whether chunks should begin with files."""
    lowest: bool = False
    """Whether there is no layer below, so that whiteouts mean nothing and are left out."""
    hot: Sequence[HotRange] = ()
    """File data to be put in front, right behind the metadata, in their order."""


@dataclass(frozen=True, slots=True)
class BuildStatistics:
    """What an image was made of."""

    entries: int
    """Entries of the tar."""
    data_bytes: int
    """File data in the image, padded to blocks."""
    metadata_bytes: int
    dropped_xattrs: int
    """Extended attributes of name spaces that EROFS does not have."""
    lookups: Lookups | None = None
    """What was asked of the layers below, for the tar leaves it open."""
    front: FrontLayout | None = None
    """What became of the hot files, if there were to be any."""


class BuiltImage:
    """A finished image in its spool; ``read`` may be called from several threads."""

    def __init__(
        self,
        spool: BinaryIO,
        statistics: BuildStatistics,
        order: DataOrder,
        data_borders: Sequence[int] = (),
    ) -> None:
        """Take a finished image.

        Args:
            spool: holds data, then metadata; it must stay open.
            statistics: of the image.
            order: of the data.
            data_borders: where chunks should begin in the file data.
        """
        self._spool = spool
        self.statistics = statistics
        self._order = order
        self._data_borders = data_borders

    @property
    def size_bytes(self) -> int:
        """Length of the image, a multiple of 4096."""
        return self.statistics.metadata_bytes + self.statistics.data_bytes

    @property
    def early_start(self) -> int:
        """Where the file data begin."""
        return self.statistics.metadata_bytes

    @property
    def borders(self) -> Sequence[int]:
        """Where chunks should begin: with file data, and in them."""
        start = self.statistics.metadata_bytes
        if not self.statistics.data_bytes:
            return ()
        return array("Q", (start, *(start + border for border in self._data_borders)))

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes at ``offset``, fewer only at the end of the image.

        Raises:
            OSError: the spool cannot be read, or became shorter.
        """
        metadata_bytes = self.statistics.metadata_bytes
        parts: list[bytes] = []
        if offset < metadata_bytes:
            in_metadata = min(length, metadata_bytes - offset)
            parts.append(read_at(self._spool, self.statistics.data_bytes + offset, in_metadata))
            offset += in_metadata
            length -= in_metadata
        length = min(length, self.size_bytes - offset)
        if length > 0:
            parts += self._read_data(offset - metadata_bytes, length)
        return b"".join(parts)

    def _read_data(self, offset: int, length: int) -> Iterator[bytes]:
        end = offset + length
        first = offset // BLOCK_SIZE
        for span in self._order.spooled(first, -(-end // BLOCK_SIZE) - first):
            skipped = offset - first * BLOCK_SIZE
            step = min(span.length * BLOCK_SIZE - skipped, end - offset)
            yield read_at(self._spool, span.first * BLOCK_SIZE + skipped, step)
            offset += step
            first += span.length


class _FileSpool:
    """The builder's spool over a file; tells which chunks of it are certain."""

    def __init__(
        self, file: BinaryIO, early: EarlyCut | None, on_chunks: OnChunks, *, in_files: bool
    ) -> None:
        """Tell ``on_chunks`` what ``early`` gives; ``in_files``: also inside of a file."""
        self._file = file
        self._early = early
        self._on_chunks = on_chunks
        self._in_files = in_files
        self._size = 0
        self._told = 0

    def append(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._size += len(data)
        if self._in_files:
            self.tell()

    def tell(self) -> None:
        """Look for chunks now and then; all borders up to here are known."""
        if self._early is None or self._size < self._told + EARLY_BYTES:
            return
        self._told = self._size
        chunks = self._early.take(self._size)
        if chunks:
            self._file.flush()
            self._on_chunks(chunks)


def build_image(
    tar: Readable,
    spool: BinaryIO,
    on_progress: Callable[[int], None] | None = None,
    options: BuildOptions = BuildOptions(),
    below: Below = NOTHING_BELOW,
    on_names: Callable[[LowerNames], None] | None = None,
    on_chunks: OnChunks | None = None,
) -> BuiltImage:
    """Convert a layer's tar stream; blocking, for a worker thread.

    Args:
        tar: the uncompressed stream; it is read to its end.
        spool: an empty temporary file, which the image then lies in.
        on_progress: told the bytes of the tar that were read so far, about every MiB.
        options: what the image depends on beside the tar.
        below: the layers below, for what the tar leaves open.
        on_names: told what layers above may ask this one.
        on_chunks: told which chunks of the file data are in the spool, at the same place there,
            and will be chunks of the image. Where some are hot, none is certain.

    Raises:
        ConversionError: the tar is damaged or holds what an image cannot.
        OSError: the spool cannot be written.
    """
    borders = FileBorders() if options.file_borders else None
    certain = on_chunks is not None and not options.hot
    early = _early_cut(options, borders) if certain else None
    file = _FileSpool(spool, early, on_chunks or _ignore, in_files=borders is None)
    builder = ImageBuilder(file, lowest=options.lowest)
    reader = TarReader(tar, on_progress)
    files: list[_SpooledFile] = []
    entries = 0
    for entry in reader.entries():
        before = builder.data_size
        _add(builder, entry, reader)
        if borders is not None:
            borders.add(entry.path, before, builder.data_size - before)
            files += [_SpooledFile(entry.path, before, builder.data_size)] if options.hot else []
        file.tell()
        entries += 1
    if on_names is not None:
        on_names(builder.names())
    lookups = fill_gaps(builder, below)
    order = builder.arrange(options.hot)
    metadata = builder.finish(_data_alignment(builder.data_size, order, options))
    spool.write(metadata)
    spool.flush()
    statistics = BuildStatistics(
        entries,
        builder.data_size,
        len(metadata),
        builder.dropped_xattrs,
        lookups,
        _front(builder, order, len(metadata)) if options.hot else None,
    )
    if order.front_blocks:
        data_borders = _ordered_borders(files, order)
    else:
        data_borders = borders.borders() if borders is not None else ()
    return BuiltImage(spool, statistics, order, data_borders)


class _SpooledFile(NamedTuple):
    """Where the data of a file are in the spool, in bytes."""

    path: bytes
    start: int
    end: int


def _ordered_borders(files: Iterable[_SpooledFile], order: DataOrder) -> Sequence[int]:
    """Where chunks should begin in reordered data: with the files, and behind the front."""
    placed = sorted(
        (span, file.path)
        for file in files
        for span in order.placed(file.start // BLOCK_SIZE, (file.end - file.start) // BLOCK_SIZE)
    )
    borders = FileBorders()
    for span, path in placed:
        borders.add(path, span.first * BLOCK_SIZE, span.length * BLOCK_SIZE)
    return sorted({*borders.borders(), order.front_blocks * BLOCK_SIZE})


def _front(builder: ImageBuilder, order: DataOrder, metadata_bytes: int) -> FrontLayout:
    data = BlockSpan(metadata_bytes // BLOCK_SIZE, order.front_blocks)
    return FrontLayout(builder.hot_metadata, data, frozenset(builder.missing))


def _ignore(chunks: Sequence[ByteRange]) -> None:
    """Nobody wants to know."""


def _data_alignment(data_size_bytes: int, order: DataOrder, options: BuildOptions) -> int:
    """Where file data may begin; see decision note 4. What is hot is read with the metadata."""
    chunk = options.chunk_size_bytes
    if options.free_chunks or order.front_blocks or chunk % BLOCK_SIZE:
        return BLOCK_SIZE
    return chunk if data_size_bytes >= CHUNKS_FOR_METADATA_APART * chunk else BLOCK_SIZE


def _early_cut(options: BuildOptions, borders: FileBorders | None) -> EarlyCut | None:
    """What cuts the data while they come; None: chunks are certain only in the end."""
    chunk = options.chunk_size_bytes
    if options.free_chunks:
        return EarlyCut(chunk, 0, borders)
    if chunk % BLOCK_SIZE:
        return None
    return EarlyCut(chunk, CHUNKS_FOR_METADATA_APART * chunk)


def _add(builder: ImageBuilder, entry: TarEntry, reader: TarReader) -> None:
    path = entry.path
    parent, slash, name = path.rstrip(b"/").rpartition(b"/")
    if b"/" + META_PREFIX in b"/" + parent:
        return  # what AUFS keeps for itself
    if name.startswith(WHITEOUT_PREFIX):
        _add_whiteout(builder, parent + slash, name)
    else:
        add_entry(builder, path, entry, reader.data())


def _add_whiteout(builder: ImageBuilder, parent: bytes, name: bytes) -> None:
    """Translate an AUFS whiteout (OCI image-spec, "Representing Changes")."""
    if name == OPAQUE_MARKER:
        builder.set_opaque(parent)
    elif not name.startswith(META_PREFIX):
        hidden = name[len(WHITEOUT_PREFIX) :]
        if hidden in (b"", b".", b".."):
            raise ConversionError(f"{shown(parent + name)}: whiteout of {shown(hidden)}")
        builder.add_whiteout(parent + hidden)

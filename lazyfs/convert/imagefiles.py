"""Where the files of a finished image lie, so that chunks can begin with them."""

from collections.abc import Sequence

from lazyfs.convert.cutting import FileBorders
from lazyfs.convert.images import Image
from lazyfs.erofs.compressed.runs import Encoded
from lazyfs.erofs.datamap import run_end
from lazyfs.erofs.extents import Extent
from lazyfs.erofs.image import Image as ErofsImage
from lazyfs.erofs.image import Inode, open_image
from lazyfs.errors import LazyfsError, TruncatedRecordError
from lazyfs.model import ByteRange, Nid
from lazyfs.steps import Need, Steps, run

MAX_FILES = 1 << 24
"""Inodes that are looked at; an image of more gets no borders."""

MAX_RUN_BYTES = 1 << 40


class AlignedImage:
    """An image whose chunks are to begin with its files (``Image``)."""

    def __init__(self, image: Image) -> None:
        """Look through ``image``; blocks."""
        self._image = image
        self.size_bytes = image.size_bytes
        self.early_start = image.early_start
        self.borders: Sequence[int] = file_borders(image)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes; thread-safe."""
        return self._image.read(offset, length)


def file_borders(image: Image) -> Sequence[int]:
    """Where chunks should begin; nowhere in particular in an image that cannot be understood."""

    def read(need: Need) -> bytes:
        if need.device or need.offset + need.length > image.size_bytes:
            raise TruncatedRecordError(f"{need} of an image of {image.size_bytes} bytes")
        return image.read(need.offset, need.length)

    try:
        files = sorted(run(_files(), read))
    except LazyfsError:
        return ()
    borders = FileBorders()
    for where, path in files:
        borders.add(path, where.offset, where.length)
    return borders.borders()


def _files() -> Steps[list[tuple[ByteRange, bytes]]]:
    """The ranges of the image that hold data of files, each with its file's path."""
    image = yield from open_image()
    found: list[tuple[ByteRange, bytes]] = []
    seen: set[Nid] = {image.root_nid}
    pending = [(image.root_nid, b"")]
    while pending:
        nid, path = pending.pop()
        directory = yield from image.inode(nid)
        position = 0
        while entries := (yield from image.entries(directory, position)):
            position = entries[-1].next_position
            for entry in entries:
                if entry.nid in seen or entry.name in (b".", b".."):
                    continue
                seen.add(entry.nid)
                if len(seen) > MAX_FILES:
                    return []
                inode = yield from image.inode(entry.nid)
                inner = path + b"/" + entry.name
                if inode.is_directory:
                    pending.append((entry.nid, inner))
                elif inode.is_regular:
                    where = yield from _data(image, inode)
                    found += [(where, inner)] if where is not None else []
    return found


def _data(image: ErofsImage, inode: Inode) -> Steps[ByteRange | None]:
    """The range from the first to the last byte of a file's data on the first device."""
    low: int | None = None
    high = offset = 0
    block = image.superblock.block_bytes
    while runs := (yield from image.extents(inode, offset, MAX_RUN_BYTES)):
        offset = run_end(runs[-1])
        for each in runs:
            if isinstance(each, Extent | Encoded) and each.device == 0:
                length = each.length if isinstance(each, Extent) else each.stored_bytes
                low = each.address if low is None else min(low, each.address)
                high = max(high, each.address + length)
    if low is None or low % block:
        return None  # no data, or in the middle of metadata
    return ByteRange(low, -(-high // block) * block - low)

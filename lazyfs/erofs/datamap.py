"""Where the data of any inode lies, whatever its layout."""

from typing import TypeAlias, TypeVar

from lazyfs.erofs import limits, ondisk
from lazyfs.erofs.compressed.map import CompressedMap, open_compressed_map
from lazyfs.erofs.compressed.runs import Encoded, Fragment
from lazyfs.erofs.compressed.window import ReadWindow
from lazyfs.erofs.devices import AddressSpace
from lazyfs.erofs.extents import METABOX, Extent, Hole, chunk_map, chunk_runs, flat_run
from lazyfs.erofs.inode import Inode
from lazyfs.erofs.superblock import Superblock
from lazyfs.erofs.xattr import ReadMetadata
from lazyfs.errors import ImageFormatError
from lazyfs.model import Nid
from lazyfs.steps import Steps

Run: TypeAlias = Extent | Hole | Encoded | Fragment

_FLAT_LAYOUTS = (ondisk.EROFS_INODE_FLAT_PLAIN, ondisk.EROFS_INODE_FLAT_INLINE)

_GRANULE_BITS = 12
"""Extents of compressed files are remembered by the 4 KiB of the file that were asked for."""

_K = TypeVar("_K")
_V = TypeVar("_V")


class DataMap:
    """The maps of an image's files.

    Those of compressed files cost much to work out, so a few of them and of their extents
    are kept (``MAX_KEPT_MAPS``, ``MAX_KEPT_EXTENTS``).
    """

    def __init__(
        self,
        superblock: Superblock,
        space: AddressSpace,
        metadata: ReadMetadata,
        window: ReadWindow,
    ) -> None:
        """Take the ways to read metadata."""
        self._superblock = superblock
        self._space = space
        self._metadata = metadata
        self._window = window
        self._maps: dict[Nid, CompressedMap] = {}
        self._extents: dict[tuple[Nid, int], list[Run]] = {}

    def plain_address(self, inode: Inode, offset: int, length: int) -> int | None:
        """Address on device 0 of data that lies there in one piece, or None: ask ``runs``.

        Quick, for directory blocks above all; the range is inside the file.
        """
        if inode.layout not in _FLAT_LAYOUTS:
            return None
        run = flat_run(self._superblock, inode, offset, offset + length)
        if isinstance(run, Hole) or run.device or run.length < length:
            return None
        address = run.address
        return address if address + length <= self._space.primary_bytes else None

    def runs(self, inode: Inode, offset: int, end: int) -> Steps[list[Run]]:
        """Runs from ``offset``, at least one, up to ``end`` or a limit; inside the file.

        The first may begin before ``offset``, the last may end behind ``end``.

        Raises:
            ImageFormatError: the map is broken.
        """
        if inode.layout == ondisk.EROFS_INODE_CHUNK_BASED:
            runs = yield from self._chunk_runs(inode, offset, end)
        elif inode.is_compressed:
            runs = yield from self._compressed_runs(inode, offset, end)
        else:
            return self._placed(flat_run(self._superblock, inode, offset, end))
        while run_end(runs[0]) <= offset:  # other parts of the first extent
            del runs[0]
        return runs

    def _chunk_runs(self, inode: Inode, offset: int, end: int) -> Steps[list[Run]]:
        chunks = chunk_map(self._superblock, inode)
        first = offset >> chunks.chunk_bits
        count = min((end - 1 >> chunks.chunk_bits) + 1 - first, limits.MAX_MAP_ENTRIES)
        entries = yield from self._metadata(
            inode.in_metabox,
            chunks.address + first * chunks.entry_bytes,
            count * chunks.entry_bytes,
        )
        return [*chunk_runs(self._superblock, inode, chunks, self._space, first, entries)]

    def _compressed_runs(self, inode: Inode, offset: int, end: int) -> Steps[list[Run]]:
        compressed = self._maps.get(inode.nid)
        if compressed is None:
            compressed = yield from open_compressed_map(self._superblock, inode, self._window)
            _remember(self._maps, inode.nid, compressed, limits.MAX_KEPT_MAPS)
        runs: list[Run] = []
        while offset < end and len(runs) < limits.MAX_MAP_ENTRIES:
            key = inode.nid, offset >> _GRANULE_BITS
            extent = self._extents.get(key)
            if extent is None or not run_end(extent[-1]) > offset >= extent[0].offset:
                extent = []
                for run in (yield from compressed.runs_at(offset)):
                    extent += self._placed(run)
                _remember(self._extents, key, extent, limits.MAX_KEPT_EXTENTS)
            runs += extent
            offset = run_end(extent[-1])
        return runs

    def _placed(self, run: Run) -> list[Run]:
        """The run with its address in the unified space made one of a device."""
        if isinstance(run, Hole | Fragment) or run.device == METABOX:
            return [run]
        if isinstance(run, Encoded):
            places = self._space.resolve(0, run.address, run.stored_bytes)
            if len(places) > 1:
                raise ImageFormatError(f"pcluster at {run.address} is on two devices")
            return [run._replace(device=places[0].device, address=places[0].address)]
        offset = run.offset
        placed: list[Run] = []
        for place in self._space.resolve(0, run.address, run.length):
            placed.append(Extent(offset, place.length, place.device, place.address))
            offset += place.length
        return placed


def run_end(run: Run) -> int:
    """Offset in the file behind a run."""
    return run.offset + run.length


def _remember(kept: dict[_K, _V], key: _K, value: _V, limit: int) -> None:
    """Keep a value, and drop the one kept longest if that makes too many."""
    if len(kept) >= limit:
        kept.pop(next(iter(kept)), None)
    kept[key] = value

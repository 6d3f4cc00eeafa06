"""Inodes, metadata and data of an image, as bytes."""

from collections.abc import Sequence

from lazyfs.erofs import limits, ondisk
from lazyfs.erofs.compressed.codecs import decompress
from lazyfs.erofs.compressed.runs import Encoded, Fragment
from lazyfs.erofs.compressed.window import window_bytes
from lazyfs.erofs.datamap import DataMap, Run, run_end
from lazyfs.erofs.devices import AddressSpace
from lazyfs.erofs.extents import METABOX, Hole
from lazyfs.erofs.inode import Inode, decode_inode, inode_address, is_extended
from lazyfs.erofs.superblock import Superblock
from lazyfs.errors import ImageFormatError
from lazyfs.model import Nid
from lazyfs.steps import Derive, Need, Steps


class Reader:
    """Reads by nid, by address and by offset in a file.

    Two inodes serve the others: the metabox holds metadata, the packed inode fragments.
    Neither depends on itself (the metabox is no part of the metabox, the packed inode has
    no fragment), so reading through them comes to an end.
    """

    def __init__(self, superblock: Superblock, space: AddressSpace) -> None:
        """Read from the devices of ``space``."""
        self._superblock = superblock
        self._window_bytes = window_bytes(superblock)
        self._metabox: Inode | None = None
        self._packed: Inode | None = None
        self.map = DataMap(superblock, space, self.metadata, self.window)

    def inode(self, nid: Nid) -> Steps[Inode]:
        """The inode ``nid`` (see ``Image.inode``)."""
        address = inode_address(self._superblock, nid)
        in_metabox = bool(nid >> ondisk.EROFS_DIRENT_NID_METABOX_BIT)
        offset = address % self._window_bytes
        if in_metabox:
            data = yield from self.window(in_metabox, address - offset)
        else:  # quickly: listings ask for many; the address was checked
            data = yield Need(0, address - offset, self._window_bytes)
        if offset >= len(data):
            raise ImageFormatError(f"nid {nid:#x}: behind the end of the metabox")
        if is_extended(data, offset) and offset + ondisk.INODE_EXTENDED.size_bytes > len(data):
            rest = yield from self.window(in_metabox, address - offset + self._window_bytes)
            data = data[offset:] + rest
            offset = 0
        return decode_inode(self._superblock, nid, address, data, offset)

    def data(self, inode: Inode, offset: int, length: int) -> Steps[bytes]:
        """Bytes of anything that has data; the range is inside it.

        Raises:
            ImageFormatError: the map of the data is broken, or a pcluster.
        """
        address = self.map.plain_address(inode, offset, length)
        if address is not None and length <= limits.MAX_NEED_BYTES:
            return (yield Need(0, address, length))
        end = offset + length
        most_runs = limits.MAX_RUNS_PER_READ + length // limits.MIN_MEAN_RUN_BYTES
        pieces: list[bytes] = []
        while offset < end:  # each turn gets at least one run
            for run in (yield from self.map.runs(inode, offset, end)):
                if run.offset >= end:  # another part of the last extent
                    break
                if len(pieces) == most_runs:
                    raise ImageFormatError(f"nid {inode.nid:#x}: over {most_runs} runs in a read")
                stop = min(run_end(run), end)
                pieces.append((yield from self._part(inode, run, offset, stop)))
                offset = stop
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _part(self, inode: Inode, run: Run, start: int, stop: int) -> Steps[bytes]:
        """The bytes of a run from ``start`` to ``stop``, both in the file."""
        length = stop - start
        if isinstance(run, Hole):
            return bytes(length)
        if isinstance(run, Encoded):
            data = yield from self._decompressed(run)
            return data[start - run.offset : stop - run.offset]
        if isinstance(run, Fragment):
            return (
                yield from self._fragment(inode, run.packed_offset + start - run.offset, length)
            )
        address = run.address + start - run.offset
        if run.device == METABOX:
            return (yield from self.metadata(True, address, length))
        if length <= limits.MAX_NEED_BYTES:
            return (yield Need(run.device, address, length))
        pieces = []
        for skip in range(0, length, limits.MAX_NEED_BYTES):
            piece_length = min(limits.MAX_NEED_BYTES, length - skip)
            pieces.append((yield Need(run.device, address + skip, piece_length)))
        return b"".join(pieces)

    def _decompressed(self, run: Encoded) -> Steps[bytes]:
        """All bytes of the run's extent."""
        padded = self._superblock.has_incompat(ondisk.EROFS_FEATURE_INCOMPAT_LZ4_0PADDING)
        stored = b""
        inputs: tuple[Need, ...] = ()
        if run.device == METABOX:
            stored = yield from self.metadata(True, run.address, run.stored_bytes)
        else:
            inputs = (Need(run.device, run.address, run.stored_bytes),)

        def compute(answers: Sequence[bytes]) -> bytes:
            return decompress(
                run.algorithm,
                answers[0] if answers else stored,
                run.length,
                partial=run.partial,
                padded=padded,
            )

        return (yield Derive(run[1:], inputs, compute, run.length))

    def _fragment(self, inode: Inode, offset: int, length: int) -> Steps[bytes]:
        if inode.nid == self._superblock.packed_nid:
            raise ImageFormatError(f"packed nid {inode.nid:#x}: has a fragment itself")
        packed = yield from self.packed()
        if offset + length > packed.size_bytes:
            raise ImageFormatError(f"nid {inode.nid:#x}: fragment at {offset}, behind the end")
        return (yield from self.data(packed, offset, length))

    def metadata(self, in_metabox: bool, address: int, length: int) -> Steps[bytes]:
        """Metadata by byte address: of the first device, or of the metabox.

        Raises:
            ImageFormatError: no such address.
        """
        if not in_metabox:
            if address + length > limits.MAX_ADDRESS:
                raise ImageFormatError(f"metadata at {address}")
            return (yield Need(0, address, length))
        metabox = yield from self.metabox()
        if not 0 <= address <= address + length <= metabox.size_bytes:
            raise ImageFormatError(f"metabox: {length} bytes at {address} of {metabox.size_bytes}")
        return (yield from self.data(metabox, address, length))

    def window(self, in_metabox: bool, address: int) -> Steps[bytes]:
        """The aligned window of metadata at ``address``; short at the metabox's end.

        Raises:
            ImageFormatError: no such address.
        """
        length = self._window_bytes
        if in_metabox:
            metabox = yield from self.metabox()
            length = min(length, metabox.size_bytes - address)
        return (yield from self.metadata(in_metabox, address, length))

    def metabox(self) -> Steps[Inode]:
        """The inode of compressed metadata.

        Raises:
            ImageFormatError: there is none, or it is broken.
        """
        if self._metabox is None:
            self._metabox = yield from self._internal_inode(self._superblock.metabox_nid)
        return self._metabox

    def packed(self) -> Steps[Inode]:
        """The inode of fragments.

        Raises:
            ImageFormatError: there is none, or it is broken.
        """
        if self._packed is None:
            self._packed = yield from self._internal_inode(self._superblock.packed_nid)
        return self._packed

    def _internal_inode(self, nid: Nid) -> Steps[Inode]:
        if not nid:
            raise ImageFormatError("superblock: no metabox, or no packed inode, and one is needed")
        inode = yield from self.inode(nid)
        if not inode.is_regular:
            raise ImageFormatError(f"internal nid {nid:#x}: mode {inode.mode:#o}")
        return inode

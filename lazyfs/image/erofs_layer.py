"""One EROFS image: runs the parsers of ``lazyfs.erofs`` on verified bytes.

This is where the pure code's requests meet readers: bytes come from the devices, computed
bytes (decompressed pclusters) from a bounded memo.
"""

import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import trio

from cache.memo import Memo
from lazyfs.erofs.image import Entry, Image, Inode, open_image
from lazyfs.errors import ImageFormatError, LazyfsError, PlanError, TruncatedRecordError
from lazyfs.interfaces import VerifiedReader
from lazyfs.model import END_POSITION, Attributes, Nid
from lazyfs.steps import Derive, Need, Request, Steps

MAX_INODES = 1 << 13
"""Decoded inodes that the layers of a mount remember together (about 330 bytes each)."""

IN_PLACE_BYTES = 1 << 16
"""Results up to this length are computed on the event loop: to let a thread do it takes longer
than most of them, and the slowest (LZMA) needs about a millisecond."""

THREADS = os.cpu_count() or 1
"""Longer ones are computed in so many threads at once, whatever the number of layers."""

_DOTS = (b".", b"..")

T = TypeVar("T")

_threads: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("lazyfs-derive")


class InodeMemory:
    """The most recently used inodes of all layers of a mount."""

    def __init__(self) -> None:
        self._inodes: OrderedDict[tuple[int, Nid], Inode] = OrderedDict()

    def get(self, layer: int, nid: Nid) -> Inode | None:
        """The inode, if it is remembered."""
        inode = self._inodes.get((layer, nid))
        if inode is not None:
            self._inodes.move_to_end((layer, nid))
        return inode

    def put(self, layer: int, nid: Nid, inode: Inode) -> None:
        """Remember an inode, forgetting the least recently used one."""
        self._inodes[layer, nid] = inode
        if len(self._inodes) > MAX_INODES:
            self._inodes.popitem(last=False)


class ErofsLayer:
    """An EROFS image over its devices."""

    def __init__(
        self,
        number: int,
        devices: Sequence[VerifiedReader],
        derived: Memo,
        inodes: InodeMemory | None = None,
    ) -> None:
        """Describe the layer; ``open`` reads its superblock.

        Args:
            number: tells what is remembered of the layer from what is of others.
            devices: the image itself, then its extra devices in the order of its table.
            derived: shared by the layers of a mount, so that its limit is the mount's.
            inodes: likewise; None: one of its own.
        """
        self._number = number
        self._devices = list(devices)
        self._derived = derived
        self._inodes = InodeMemory() if inodes is None else inodes
        self.on_beginning: Callable[[Nid, bytes], None] | None = None
        """Is told with which bytes a file begins that is read."""
        self.image: Image

    async def open(self, *, flat: bool = False) -> None:
        """Read superblock and device table.

        Raises:
            ImageFormatError, VerificationError, SourceUnavailableError.
        """
        self.image = await self.run(open_image(flat=flat))

    def attach(self, devices: Sequence[VerifiedReader]) -> None:
        """Give an opened image its extra devices, in the order of its table.

        Raises:
            PlanError: there are fewer than the image has, or one is too small.
        """
        self._devices += devices
        for number, slot in enumerate(self.image.devices, 1):
            if number >= len(self._devices):
                raise PlanError(
                    f"the image has data on {len(self.image.devices)} more devices, "
                    f"{len(self._devices) - 1} are there"
                )
            size = self._devices[number].size_bytes
            if size <= slot.size_bytes - self.image.superblock.block_bytes:  # the last may be short
                raise PlanError(
                    f"device {number} has {size} bytes, the image uses {slot.size_bytes}"
                )

    async def inode(self, nid: Nid) -> Inode:
        """The decoded inode."""
        inode = self._inode_nowait(nid)
        if inode is None:
            inode = await self.run(self.image.inode(nid))
            self._inodes.put(self._number, nid, inode)
        return inode

    def _inode_nowait(self, nid: Nid) -> Inode | None:
        """The decoded inode, if it is at hand."""
        inode = self._inodes.get(self._number, nid)
        if inode is None:
            inode = self._run_nowait(self.image.inode(nid))
            if inode is not None:
                self._inodes.put(self._number, nid, inode)
        return inode

    async def lookup(self, directory: Nid, name: bytes) -> Entry:
        """The entry of that name.

        A directory has one place, where its ``..`` says: so no directory is met twice on the
        way down, and no walk is endless.

        Raises:
            NoSuchEntryError, NotADirectoryNodeError.
            ImageFormatError: it is a directory that belongs elsewhere.
        """
        entry = await self.run(self.image.lookup(await self.inode(directory), name))
        if name in (b".", b".."):
            return entry
        found = await self.inode(entry.nid)
        file_type = stat.S_IFMT(found.mode)
        if entry.file_type not in (0, file_type):
            raise ImageFormatError(
                f"nid {entry.nid:#x} has mode {found.mode:#o}, its entry says {entry.file_type:#o}"
            )
        if found.is_directory:
            self._check_place(found, directory, await self.run(self.image.parent_nid(found)))
        return entry._replace(file_type=file_type)

    def subdirectory_nowait(self, directory: Nid, nid: Nid) -> Attributes | None:
        """Attributes of a directory that ``entries`` gave, checked as ``lookup`` does.

        None if it is broken, or not at hand.
        """
        try:
            found = self._inode_nowait(nid)
            if found is None or not found.is_directory:
                return None
            parent = self._run_nowait(self.image.parent_nid(found))
            if parent is None:
                return None
            self._check_place(found, directory, parent)
        except LazyfsError:
            return None
        return found.attributes()

    def _check_place(self, found: Inode, directory: Nid, parent: Nid) -> None:
        if parent != directory or found.nid == self.image.root_nid:
            raise ImageFormatError(
                f"directory nid {found.nid:#x} belongs in {parent:#x}, not {directory:#x}"
            )

    async def parent(self, directory: Nid) -> Nid:
        """What ``..`` of a directory says.

        Raises:
            NotADirectoryNodeError.
        """
        return await self.run(self.image.parent_nid(await self.inode(directory)))

    async def entries(self, directory: Nid, position: int) -> list[Entry]:
        """Some entries from ``position``, without ``.`` and ``..``; none at the end.

        The directory's last entry says ``END_POSITION``.

        A checkpoint before each block but the first, so that who reads a huge directory lets
        others have their turn; most have only one, and a checkpoint costs as much as 20 entries.

        Raises:
            NotADirectoryNodeError.
        """
        inode = await self.inode(directory)
        if position == END_POSITION:
            return []
        if position and not position % self.image.superblock.block_bytes:
            await trio.lowlevel.checkpoint()
        while True:
            entries = await self.run(self.image.entries(inode, position))
            shown = [entry for entry in entries if entry[0] not in _DOTS]
            if shown and shown[-1].next_position >= inode.size_bytes:
                shown[-1] = shown[-1]._replace(next_position=END_POSITION)
            if shown or not entries:
                return shown
            position = entries[-1].next_position

    async def read(self, nid: Nid, offset: int, length: int) -> bytes:
        """File data; short only at the end of the file."""
        data = await self.run(self.image.read(await self.inode(nid), offset, length))
        if not offset and self.on_beginning is not None:
            self.on_beginning(nid, data)
        return data

    async def link_target(self, nid: Nid) -> bytes:
        """Target of a symbolic link."""
        return await self.run(self.image.link_target(await self.inode(nid)))

    async def xattrs(self, nid: Nid) -> dict[bytes, bytes]:
        """All extended attributes, as the image has them."""
        return await self.run(self.image.xattrs(await self.inode(nid)))

    async def run(self, steps: Steps[T]) -> T:
        """Run pure steps to their end.

        Raises:
            Whatever the steps raise, or the reading of a device.
        """
        try:
            request: Request = next(steps)
            while True:
                try:
                    data = self._at_hand(request)
                    if data is None:
                        data = await self._answer(request)
                except LazyfsError as error:
                    request = steps.throw(error)
                else:
                    request = steps.send(data)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _run_nowait(self, steps: Steps[T]) -> T | None:
        """As ``run`` if all that the steps need is at hand, else None; never blocks."""
        try:
            request: Request = next(steps)
            while True:
                data = self._at_hand(request)
                if data is None:
                    return None
                request = steps.send(data)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _at_hand(self, request: Request) -> bytes | None:
        """The answer if it is in memory: most steps end without a checkpoint."""
        if isinstance(request, Need):
            return self._device(request.device).read_nowait(request.offset, request.length)
        return self._derived.get((self._number, *request.key))

    async def _answer(self, request: Request) -> bytes:
        # Who wants only what is at hand is cancelled: nothing is fetched for him.
        await trio.lowlevel.checkpoint_if_cancelled()
        if isinstance(request, Need):
            return await self._device(request.device).read(request.offset, request.length)
        key = (self._number, *request.key)
        return await self._derived.get_or_make(key, partial(self._derive, request))

    async def _derive(self, request: Derive) -> bytes:
        inputs = [
            await self._device(need.device).read(need.offset, need.length)
            for need in request.inputs
        ]
        if request.size_bytes <= IN_PLACE_BYTES:
            return request.compute(inputs)
        return await trio.to_thread.run_sync(request.compute, inputs, limiter=_limiter())

    async def data_of(self, nid: Nid) -> tuple["ErofsLayer", Nid]:
        """The image that holds the data of a file, and which inode they have there."""
        return self, nid

    def device(self, number: int) -> VerifiedReader:
        """The image itself (0) or one of its devices.

        Raises:
            TruncatedRecordError: there is none of that number.
        """
        return self._device(number)

    def _device(self, number: int) -> VerifiedReader:
        if number >= len(self._devices):
            raise TruncatedRecordError(
                f"data on device {number}, the image was given {len(self._devices) - 1} devices"
            )
        return self._devices[number]


def _limiter() -> trio.CapacityLimiter:
    """The one that all layers share."""
    try:
        return _threads.get()
    except LookupError:
        limiter = trio.CapacityLimiter(THREADS)
        _threads.set(limiter)
        return limiter

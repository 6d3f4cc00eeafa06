"""What a program that starts will want next, of its own file and of its libraries.

The dynamic linker opens one library after the other, and reads its beginning, its end and its
tables: each is a round trip. But once the first page of a program is here, its file says which ones
these will be. They are asked for as guesses are, only that they are nearly sure to be right.
"""

import logging
import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import trio

from lazyfs import elf
from lazyfs.erofs.extents import Extent
from lazyfs.errors import LazyfsError
from lazyfs.image.erofs_layer import ErofsLayer
from lazyfs.image.nodes import Place, place_of
from lazyfs.image.tracing import Route, follow
from lazyfs.interfaces import ImageTree
from lazyfs.layer.guess import Guesser
from lazyfs.layer.paged import PagedReader
from lazyfs.model import ByteRange, Nid, NodeId
from lazyfs.mount.tuning import READ_AHEAD_KB

MAX_FILES = 512
"""Programs and libraries of a mount that are looked into."""

MAX_NAMES = 512
"""Names of libraries that are looked for."""

MAX_LINKS = 4
"""Symbolic links from where a library is looked for to the file, one behind the other."""

MAX_AT_ONCE = 16
"""Files that are looked into at the same time."""

TAIL_BYTES = 128 << 10
"""At the end of a library there is nearly always what can be written, and the dynamic section."""

MAX_PART_BYTES = 16 << 20
"""Of one part of a file; the tables of a library of 47 MB take 10."""

AROUND_BYTES = READ_AHEAD_KB << 9
"""The kernel reads so much on each side of a page that is missing in a file that is mapped."""

TRIPLETS = {
    21: b"powerpc64le-linux-gnu",
    22: b"s390x-linux-gnu",
    62: b"x86_64-linux-gnu",
    183: b"aarch64-linux-gnu",
    243: b"riscv64-linux-gnu",
    258: b"loongarch64-linux-gnu",
}
"""What Debian calls the folders of a machine (``e_machine``)."""

INTERPRETERS = {
    "aarch64": (183, b"/lib/ld-linux-aarch64.so.1"),
    "loongarch64": (258, b"/lib64/ld-linux-loongarch-lp64d.so.1"),
    "ppc64le": (21, b"/lib64/ld64.so.2"),
    "riscv64": (243, b"/lib/ld-linux-riscv64-lp64d.so.1"),
    "s390x": (22, b"/lib/ld64.so.1"),
    "x86_64": (62, b"/lib64/ld-linux-x86-64.so.2"),
}
"""By ``uname -m``: ``e_machine``, and where glibc's dynamic linker is as programs name it."""

C_LIBRARY = b"libc.so.6"
"""What nearly every program names that has such an interpreter."""

SMALL_BYTES = 8 << 20
"""Of a segment that is probably wanted as a whole, if only by the kernel's reading ahead."""

FOLDERS = (b"/lib64", b"/usr/lib64", b"/lib", b"/usr/lib", b"/usr/local/lib")
"""Where dynamic linkers look for libraries besides."""

LINKER_CACHE = b"/etc/ld.so.cache"
"""Where glibc's dynamic linker looks first."""

T = TypeVar("T")

log = logging.getLogger(__name__)


class _File(NamedTuple):
    """A file whose data lie in one piece of one layer."""

    reader: PagedReader
    where: ByteRange

    def foresee(self, part: ByteRange, *, at_once: bool = False) -> None:
        """Begin to fetch a part that will be wanted; returns at once."""
        end = min(part.end, self.where.length, part.offset + MAX_PART_BYTES)
        if self.reader.guesses is not None and part.offset < end:
            start = self.where.offset + part.offset
            self.reader.guesses.foreseen(start, end - part.offset, at_once=at_once)

    def fill(self, part: ByteRange, *, last: bool) -> None:
        """A part is probably wanted as a whole; ``last``: after other such parts."""
        end = min(part.end, self.where.length)
        if self.reader.guesses is not None and part.offset < end:
            start = self.where.offset + part.offset
            self.reader.guesses.fill(start, end - part.offset, last=last)

    def foresee_faults(self, part: ByteRange) -> None:
        """The same of pages that will be found missing."""
        start = max(0, part.offset - AROUND_BYTES)
        self.foresee(ByteRange(start, part.end + AROUND_BYTES - start))

    async def load(self, part: ByteRange) -> bytes:
        """Proven bytes, for ourselves; fewer at the end of the file."""
        end = min(part.end, self.where.length)
        if part.offset >= end:
            return b""
        return await self.reader.read_proven(self.where.offset + part.offset, end - part.offset)


class Libraries:
    """Looks into the programs of one mount that readers begin to read."""

    def __init__(
        self,
        tree: ImageTree,
        layers: Sequence[ErofsLayer],
        readers: Sequence[PagedReader],
        guesser: Guesser,
        nursery: trio.Nursery,
    ) -> None:
        """Watch what is read.

        Args:
            tree: of the image.
            layers: of which it is made, bottom layer first.
            readers: of these; by the kernel driver files are read by them only.
            guesser: knows when it is time to guess.
            nursery: for what goes on meanwhile.
        """
        self._tree = tree
        self._layers = layers
        self._guesser = guesser
        self._nursery = nursery
        self._files: set[tuple[PagedReader, int]] = set()
        self._places: set[Place] = set()
        self._names: set[bytes] = set()
        self._limit = trio.CapacityLimiter(MAX_AT_ONCE)
        for number, layer in enumerate(layers):
            layer.on_beginning = partial(self._begins, number)
        for reader in readers:
            reader.on_read_once = partial(self._is_read, reader)

        nursery.start_soon(self._try, self._common, os.uname().machine)

    async def _common(self, machine: str) -> None:
        """On a long line have what nearly every start wants fetched while nobody reads yet."""
        if not self._guesser.is_line_long or not self._guesser.is_alone:
            return
        self._guesser.all_metadata()
        interpreter = INTERPRETERS.get(machine)
        if interpreter is not None and await self._named(*interpreter):
            await self._named(interpreter[0], C_LIBRARY)

    def _begins(self, layer: int, nid: Nid, data: bytes) -> None:
        """The beginning of a file was read; returns at once."""
        if data.startswith(elf.MAGIC):
            self._look_into(Place(layer, nid))

    def _is_read(self, reader: PagedReader, offset: int, data: bytes) -> None:
        """Something of a layer was read: perhaps it is the beginning of a file."""
        if data.startswith(elf.MAGIC):
            file = _File(reader, ByteRange(offset, reader.size_bytes - offset))
            if self._is_new(file):
                self._nursery.start_soon(self._try, self._program, file)

    def _look_into(self, place: Place) -> None:
        if place not in self._places and len(self._places) < MAX_FILES:
            self._places.add(place)
            self._nursery.start_soon(self._try, self._file, place)

    async def _try(self, work: Callable[[T], Awaitable[None]], what: T) -> None:
        """What is wrong with a file is for who reads it; not even a bug of ours is anybody's."""
        try:
            await self._guesser.begun.wait()
            async with self._limit:
                await work(what)
        except LazyfsError as error:
            log.debug("no libraries are fetched ahead: %s", error)
        except Exception:
            log.exception("no libraries are fetched ahead: internal error")

    def _is_new(self, file: _File) -> bool:
        """Whether a file was not looked into, and may be."""
        key = (file.reader, file.where.offset)
        if key in self._files or len(self._files) == MAX_FILES:
            return False
        self._files.add(key)
        return True

    async def _file(self, place: Place) -> None:
        """Look into a file that has an end."""
        layer, nid = await self._layers[place.layer].data_of(place.nid)
        inode = await layer.inode(nid)
        if not inode.size_bytes:
            return
        first = (await layer.run(layer.image.extents(inode, 0, inode.size_bytes)))[0]
        if not isinstance(first, Extent) or first.device < 0:
            return
        reader = layer.device(first.device)
        if not isinstance(reader, PagedReader):
            return
        file = _File(reader, ByteRange(first.address, first.length))
        if self._is_new(file):
            # What it needs besides is in there: all that waits for that waits for these.
            file.foresee(ByteRange(0, elf.HEAD_BYTES), at_once=True)
            tail = ByteRange(first.length - min(TAIL_BYTES, first.length), TAIL_BYTES)
            file.foresee(tail, at_once=True)
            file.foresee_faults(tail)
            await self._program(file)

    async def _program(self, file: _File) -> None:
        """Have fetched what the dynamic linker wants of a file, and look into what it names."""
        head = await file.load(ByteRange(0, elf.HEAD_BYTES))
        program = elf.parse_program(head, file.where.length)
        if program is None or program.dynamic is None:
            return
        for segment in program.segments:
            if segment.is_written:
                file.foresee_faults(segment.where)
        if program.interpreter is not None:
            await self._named(program.machine, LINKER_CACHE)
            name = elf.parse_name(await file.load(program.interpreter))
            await self._named(program.machine, name)
        dynamic = elf.parse_dynamic(program, await file.load(program.dynamic))
        for table in dynamic.tables:
            file.foresee_faults(table)
        for segment in program.segments:
            is_small = segment.where.length <= SMALL_BYTES
            if not segment.is_written and (is_small or segment.is_code):
                file.fill(segment.where, last=not is_small)
        for at in dynamic.needed:
            name = elf.parse_name(await file.load(ByteRange(at, elf.MAX_NAME_BYTES)))
            await self._named(program.machine, name)

    async def _named(self, machine: int, name: bytes | None) -> bool:
        """Look into a library for a machine, by its name or its path; whether there is one."""
        if name is None or name in self._names or len(self._names) == MAX_NAMES:
            return False
        self._names.add(name)
        paths = [name]
        if b"/" not in name:
            triplet = TRIPLETS.get(machine)
            folders = [] if triplet is None else [b"/lib/" + triplet, b"/usr/lib/" + triplet]
            paths = [folder + b"/" + name for folder in (*folders, *FOLDERS)]
        for path in paths:
            await trio.lowlevel.checkpoint()  # all of this may be in memory
            node = await self._find(path)
            if node is not None:
                self._look_into(place_of(node))
                return True
        return False

    async def _find(self, path: bytes) -> NodeId | None:
        """The regular file that a path leads to; None: there is none."""
        for _ in range(MAX_LINKS + 1):
            route = Route()
            await follow(self._tree, path, route)
            if route.node is None:
                return None
            mode = (await self._tree.attributes(route.node)).mode
            if not stat.S_ISLNK(mode):
                return route.node if stat.S_ISREG(mode) else None
            target = await self._tree.link_target(route.node)
            if not target.startswith(b"/"):
                target = b"/".join([*route.names[:-1], target])
            path = target
        return None

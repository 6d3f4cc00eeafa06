"""What a program wants of its file and of others before it runs: as far as its ELF file says it.

Pure. Written after the System V ABI's gABI, chapters 4 and 5, and Linux' ``elf.h``. The dynamic
linker reads the tables of a library one after the other, and changes pointers in most of what can
be written; and it opens the libraries that are named ``DT_NEEDED``. Only files of 64 bits are
understood. The file is not trusted: what makes no sense in it is left out.
"""

import struct
from typing import NamedTuple

from lazyfs.model import ByteRange

MAGIC = b"\x7fELF"

HEAD_BYTES = 4096
"""Of a file, in which header and program headers are looked for."""

MAX_DYNAMIC_BYTES = 16 << 10
"""Of the dynamic section; those of large programs have 1 KiB."""

MAX_NEEDED = 128
"""Libraries that one file names."""

MAX_NAME_BYTES = 256
"""Of the name of one, with the zero behind it."""

_CLASS_64, _BYTE_ORDERS = 2, {1: "<", 2: ">"}
_HEADER_BYTES, _SEGMENT_BYTES, _ENTRY_BYTES = 64, 56, 16
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_PF_X, _PF_W = 1, 2
_DT_NULL, _DT_NEEDED, _DT_PLTRELSZ, _DT_STRTAB, _DT_RELA, _DT_RELASZ = 0, 1, 2, 5, 7, 8
_DT_STRSZ, _DT_JMPREL = 10, 23


class Segment(NamedTuple):
    """A part of the file that is mapped when it is loaded."""

    where: ByteRange
    """In the file."""
    address: int
    """Where it is mapped to."""
    is_written: bool
    is_code: bool


class Program(NamedTuple):
    """The beginning of an ELF file."""

    byte_order: str
    machine: int
    """``e_machine``."""
    segments: tuple[Segment, ...]
    dynamic: ByteRange | None
    """The dynamic section; None: nothing is linked to it when it starts."""
    interpreter: ByteRange | None
    """Where the path of the dynamic linker is."""

    def in_file(self, address: int, length: int = 1) -> ByteRange | None:
        """Where in the file something is that is mapped to ``address``, up to its segment's end."""
        for where, start, _, _ in self.segments:
            if start <= address < start + where.length and length > 0:
                left = start + where.length - address
                return ByteRange(where.end - left, min(length, left))
        return None


class Dynamic(NamedTuple):
    """What the dynamic linker looks at, by offsets in the file."""

    needed: tuple[int, ...]
    """Where the names of libraries are."""
    tables: tuple[ByteRange, ...]
    """Of strings and of relocations. Those of the first segment are one, from the beginning on:
    what lies between them are other tables."""


def parse_program(head: bytes, size_bytes: int) -> Program | None:
    """What the first ``HEAD_BYTES`` of a file of ``size_bytes`` say; None: it is no ELF file."""
    order = _BYTE_ORDERS.get(head[5]) if len(head) >= _HEADER_BYTES else None
    if order is None or not head.startswith(MAGIC) or head[4] != _CLASS_64:
        return None
    machine, first = struct.unpack_from(f"{order}2xHxxxx8xQ", head, 16)
    segment_bytes, count = struct.unpack_from(f"{order}HH", head, 54)
    if segment_bytes != _SEGMENT_BYTES:
        return None
    segments = []
    dynamic = interpreter = None
    for offset in range(first, min(first + count * _SEGMENT_BYTES, len(head)), _SEGMENT_BYTES):
        if offset + _SEGMENT_BYTES > len(head):
            break
        kind, flags, start, address, length = struct.unpack_from(f"{order}IIQQ8xQ", head, offset)
        if not length or start + length > size_bytes:
            continue
        where = ByteRange(start, length)
        if kind == _PT_LOAD:
            segments.append(Segment(where, address, bool(flags & _PF_W), bool(flags & _PF_X)))
        elif kind == _PT_DYNAMIC:
            dynamic = where._replace(length=min(length, MAX_DYNAMIC_BYTES))
        elif kind == _PT_INTERP:
            interpreter = where._replace(length=min(length, MAX_NAME_BYTES))
    return Program(order, machine, tuple(segments), dynamic, interpreter)


def parse_dynamic(program: Program, section: bytes) -> Dynamic:
    """What the dynamic section of ``program`` says."""
    named: list[int] = []
    found: dict[int, int] = {}
    entries = section[: len(section) - len(section) % _ENTRY_BYTES]
    for tag, value in struct.iter_unpack(f"{program.byte_order}QQ", entries):
        if tag == _DT_NULL:
            break
        if tag == _DT_NEEDED and len(named) < MAX_NEEDED:
            named.append(value)
        else:
            found[tag] = value
    strings = program.in_file(found.get(_DT_STRTAB, -1), found.get(_DT_STRSZ, 0))
    if strings is None:
        return Dynamic((), ())
    tables = [strings]
    for table, size in ((_DT_RELA, _DT_RELASZ), (_DT_JMPREL, _DT_PLTRELSZ)):
        where = program.in_file(found.get(table, -1), found.get(size, 0))
        if where is not None:
            tables.append(where)
    first = program.segments[0].where
    inside = [where.end for where in tables if first.offset <= where.offset < first.end]
    apart = [where for where in tables if not first.offset <= where.offset < first.end]
    together = [ByteRange(0, max(inside))] if inside else []
    needed = tuple(strings.offset + at for at in named if at < strings.length)
    return Dynamic(needed, (*together, *apart))


def parse_name(data: bytes) -> bytes | None:
    """The name at the beginning of some bytes; None: it is empty, or does not end there."""
    name, zero, _ = data.partition(b"\0")
    return name if zero and name else None

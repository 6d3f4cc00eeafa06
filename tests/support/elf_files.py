"""Small ELF files with what a dynamic linker looks at, and nothing that could run."""

import struct
from collections.abc import Sequence

TABLES = 0x1000
"""Where the strings begin; tables lie between them and what can be written."""


def elf_file(
    needed: Sequence[bytes] = (),
    size: int = 0x4000,
    *,
    interpreter: bytes = b"",
    relocations: int = 0,
    order: str = "<",
    machine: int = 62,
) -> bytes:
    """A file with two segments: tables, and behind all else the dynamic section, to be written.

    Args:
        needed: names of libraries.
        size: of the file, of which the last page can be written.
        interpreter: its path.
        relocations: bytes of their table.
        order: of bytes.
        machine: ``e_machine``.
    """
    strings = b"\0"
    entries: list[tuple[int, int]] = []
    for name in needed:
        entries.append((1, len(strings)))
        strings += name + b"\0"
    rela = TABLES + len(strings)
    entries += [(5, 0x400000 + TABLES), (10, len(strings)), (7, 0x400000 + rela)]
    entries += [(8, relocations), (0, 0)]
    dynamic = b"".join(struct.pack(f"{order}QQ", *entry) for entry in entries)
    written = size - 0x1000
    segments = [
        (1, 4, 0, 0x400000, written),
        (1, 6, written, 0x800000 + written, 0x1000),
        (2, 6, written, 0x800000 + written, len(dynamic)),
    ]
    if interpreter:
        segments.append((3, 4, 0x800, 0x400800, len(interpreter) + 1))
    data = bytearray(size)
    marks = bytes([0x7F, *b"ELF", 2, 1 if order == "<" else 2, 1]) + bytes(9)
    data[:64] = struct.pack(
        f"{order}16sHHIQQQIHHHHHH",
        *(marks, 3, machine, 1, 0, 64, 0, 0, 64, 56, len(segments), 0, 0, 0),
    )
    for number, (kind, flags, offset, address, length) in enumerate(segments):
        fields = (kind, flags, offset, address, address, length, length, 8)
        struct.pack_into(f"{order}IIQQQQQQ", data, 64 + 56 * number, *fields)
    data[0x800 : 0x800 + len(interpreter)] = interpreter
    data[TABLES : TABLES + len(strings)] = strings
    data[written : written + len(dynamic)] = dynamic
    return bytes(data)

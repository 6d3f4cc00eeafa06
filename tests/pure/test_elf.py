"""What ELF files say of what they want: beside readelf, and where they are broken."""

import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs import elf
from lazyfs.elf import Program, parse_dynamic, parse_name, parse_program
from lazyfs.model import ByteRange
from tests.support.elf_files import TABLES, elf_file

SIZE = 0x4000


def understood(data: bytes) -> tuple[Program, list[bytes], list[ByteRange]]:
    """The program, the names that it needs and its tables."""
    program = parse_program(data[: elf.HEAD_BYTES], len(data))
    assert program is not None
    assert program.dynamic is not None
    found = parse_dynamic(program, data[program.dynamic.offset : program.dynamic.end])
    names = [parse_name(data[at : at + elf.MAX_NAME_BYTES]) for at in found.needed]
    return program, [name for name in names if name is not None], list(found.tables)


def readelf(option: str, path: str) -> str:
    return subprocess.run(
        ["readelf", "-W", option, path], capture_output=True, text=True, check=True
    ).stdout


def libraries() -> list[str]:
    """The interpreter, and what is loaded into it."""
    mapped = re.findall(r"(/\S+\.so[\d.]*)$", Path("/proc/self/maps").read_text(), re.MULTILINE)
    return [str(Path(sys.executable).resolve()), *sorted(set(mapped))[:12]]


@pytest.mark.parametrize("path", libraries())
def test_it_says_what_readelf_says(path: str):
    data = Path(path).read_bytes()
    program, names, tables = understood(data)
    dynamic = readelf("--dynamic", path)
    assert names == [name.encode() for name in re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)]
    loads = re.findall(
        r"^ +LOAD +(0x\w+) (0x\w+) 0x\w+ (0x\w+) 0x\w+ (.{3})",
        readelf("--segments", path),
        re.MULTILINE,
    )
    assert [
        (where.offset, address, where.length, is_written, is_code)
        for where, address, is_written, is_code in program.segments
    ] == [
        (int(offset, 16), int(address, 16), int(length, 16), "W" in flags, "E" in flags)
        for offset, address, length, flags in loads
    ]
    sections = re.findall(
        r"\.(?:dynstr|rela\.dyn|rela\.plt) +\w+ +\w+ (\w+) (\w+)", readelf("--sections", path)
    )
    for start, size in sections:
        begin, end = int(start, 16), int(start, 16) + int(size, 16)
        assert any(table.offset <= begin < end <= table.end for table in tables)


@pytest.mark.parametrize("order", "<>")
def test_both_byte_orders_are_understood(order: str):
    data = elf_file([b"liba.so", b"b"], interpreter=b"/ld", relocations=48, order=order)
    program, names, tables = understood(data)
    assert (program.byte_order, program.machine) == (order, 62)
    assert names == [b"liba.so", b"b"]
    assert tables == [ByteRange(0, TABLES + len(b"\0liba.so\0b\0") + 48)]
    assert program.interpreter is not None
    assert parse_name(data[program.interpreter.offset :]) == b"/ld"
    assert [segment.is_written for segment in program.segments] == [False, True]


@pytest.mark.parametrize(
    ("at", "value"), [(0, 0x7E), (4, 1), (5, 0), (5, 3), (54, 32)], ids=lambda value: str(value)
)
def test_what_is_not_understood_is_no_program(at: int, value: int):
    data = bytearray(elf_file([b"liba.so"]))
    data[at] = value
    assert parse_program(bytes(data), len(data)) is None


def test_segments_behind_the_end_do_not_count():
    data = elf_file([b"liba.so"], SIZE)
    program = parse_program(data, SIZE - 1)
    assert program is not None
    assert [segment.where for segment in program.segments] == [ByteRange(0, SIZE - 0x1000)]


def test_tables_that_were_moved_do_not_bring_all_before_them():
    data = bytearray(elf_file([b"liba.so"], relocations=48))
    written = SIZE - 0x1000
    strings = data[TABLES : TABLES + 9]
    data[SIZE - 9 :] = strings
    struct.pack_into("<Q", data, written + 16 + 8, 0x800000 + SIZE - 9)
    _, names, tables = understood(bytes(data))
    assert names == [b"liba.so"]
    assert tables == [ByteRange(0, TABLES + 9 + 48), ByteRange(SIZE - 9, 9)]


def test_tables_end_with_their_segment():
    data = elf_file([b"liba.so"], relocations=1 << 60)
    assert understood(data)[2] == [ByteRange(0, SIZE - 0x1000)]


def test_no_more_names_than_allowed():
    data = elf_file([b"x%d" % number for number in range(elf.MAX_NEEDED + 9)], 0x8000)
    assert len(understood(data)[1]) == elf.MAX_NEEDED


def test_names_end():
    assert parse_name(b"liba.so\0rest") == b"liba.so"
    assert parse_name(b"\0") is None
    assert parse_name(b"no end") is None
    assert parse_name(b"") is None


@given(st.binary(max_size=300), st.integers(0, 1 << 64))
def test_whatever_the_beginning_is_it_is_inside_the_file_or_nothing(rest: bytes, size: int):
    check(b"\x7fELF\x02\x01" + rest, b"", size)


@given(st.dictionaries(st.integers(6, 287), st.integers(0, 255), max_size=40), st.binary())
def test_broken_files_are_read_as_far_as_they_make_sense(changes: dict[int, int], section: bytes):
    data = bytearray(elf_file([b"liba.so"], interpreter=b"/ld"))
    for at, value in changes.items():
        data[at] = value
    check(bytes(data[: elf.HEAD_BYTES]), section, SIZE)
    check(bytes(data[: elf.HEAD_BYTES]), bytes(data[SIZE - 0x1000 :]), SIZE)


def check(head: bytes, section: bytes, size: int) -> None:
    program = parse_program(head, size)
    if program is None:
        return
    parts = [program.dynamic, program.interpreter, *(segment.where for segment in program.segments)]
    for part in parts:
        assert part is None or 0 <= part.offset < part.end <= size
    found = parse_dynamic(program, section)
    assert len(found.needed) <= elf.MAX_NEEDED
    assert all(0 <= table.offset < table.end <= size for table in found.tables)
    assert all(0 <= at < size for at in found.needed)

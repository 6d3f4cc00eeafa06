"""Directory data: blocks of ``struct erofs_dirent`` followed by their names.

Entries are sorted by name over the whole directory and each block is filled as far as it
goes, as ``mkfs.erofs`` does; the size of the directory ends with the last name.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lazyfs.erofs.ondisk import DIRENT, DirentRecord


class Dirent(NamedTuple):
    """One name of a directory."""

    name: bytes
    nid: int
    file_type: int
    """One of ``EROFS_FT_*``."""


def _blocks(names: Sequence[bytes], block_size: int) -> Iterator[tuple[int, int, int]]:
    """First index, end index and bytes used of each block."""
    first = used = 0
    for index, name in enumerate(names):
        length = DIRENT.size_bytes + len(name)
        if used + length > block_size:
            yield first, index, used
            first, used = index, 0
        used += length
    yield first, len(names), used


def directory_size(names: Sequence[bytes], block_size: int) -> int:
    """Bytes of a directory of these names (sorted, ``.`` and ``..`` among them)."""
    used = [used for _, _, used in _blocks(names, block_size)]
    return (len(used) - 1) * block_size + used[-1]


def encode_directory(dirents: Sequence[Dirent], block_size: int) -> bytes:
    """The data of a directory, ``directory_size`` bytes."""
    data = bytearray()
    for first, end, used in _blocks([dirent.name for dirent in dirents], block_size):
        data += bytes(-len(data) % block_size)
        name_offset = (end - first) * DIRENT.size_bytes
        names: list[bytes] = []
        for name, nid, file_type in dirents[first:end]:
            data += DIRENT.encode(DirentRecord(nid, name_offset, file_type, 0))
            names.append(name)
            name_offset += len(name)
        if name_offset != used:
            raise AssertionError(f"directory block of {name_offset} bytes, not {used}")
        data += b"".join(names)
    return bytes(data)

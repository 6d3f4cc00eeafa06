"""Directory blocks: a sorted array of dirents, then the names, in each block."""

import stat
import struct
from typing import NamedTuple

from lazyfs.erofs import limits, ondisk
from lazyfs.erofs.inode import Inode
from lazyfs.errors import ImageFormatError
from lazyfs.model import Nid

_DIRENT_BYTES = ondisk.DIRENT.size_bytes
_NAMEOFF_OFFSET = 8
_nameoff_at = struct.Struct("<H").unpack_from
_two_nameoffs_at = struct.Struct(f"<H{_DIRENT_BYTES - 2}xH").unpack_from
_head_at = struct.Struct("<QHB").unpack_from
_heads = struct.Struct("<QHBx").iter_unpack
_DOTS = (b".", b"..")
_MAX_NAME_BYTES = limits.MAX_NAME_BYTES
_TYPES = ondisk.EROFS_FT_MAX
_new = tuple.__new__
"""Makes a named tuple in half the time, where there are many."""

_FILE_TYPES = (
    0,
    stat.S_IFREG,
    stat.S_IFDIR,
    stat.S_IFCHR,
    stat.S_IFBLK,
    stat.S_IFIFO,
    stat.S_IFSOCK,
    stat.S_IFLNK,
)
"""By ``EROFS_FT_*``."""


class Entry(NamedTuple):
    """One name of a directory."""

    name: bytes
    nid: Nid
    file_type: int
    """The ``S_IFMT`` bits of the object's mode; 0: the directory does not say."""
    next_position: int
    """Where a listing goes on behind this entry."""


class DirectoryBlock:
    """One block of a directory, of which only what is asked for gets decoded.

    Every method raises ``ImageFormatError`` for a dirent that breaks the format.
    """

    __slots__ = ("_data", "_directory", "_names_start", "_offset", "count")

    def __init__(self, directory: Inode, offset: int, data: bytes) -> None:
        """Take the block at ``offset`` of the directory's data.

        Raises:
            ImageFormatError: not the beginning of a directory block.
        """
        self._directory = directory
        self._offset = offset
        self._data = data
        if len(data) < _DIRENT_BYTES:
            raise self._broken(0, f"only {len(data)} bytes")
        (names_start,) = _nameoff_at(data, _NAMEOFF_OFFSET)
        if names_start % _DIRENT_BYTES or not _DIRENT_BYTES <= names_start < len(data):
            raise self._broken(0, f"nameoff {names_start}")
        self._names_start: int = names_start
        self.count: int = names_start // _DIRENT_BYTES

    def name(self, index: int) -> bytes:
        """The name of entry ``index``."""
        data = self._data
        position = index * _DIRENT_BYTES + _NAMEOFF_OFFSET
        if index + 1 < self.count:
            start, end = _two_nameoffs_at(data, position)
        else:
            (start,) = _nameoff_at(data, position)
            end = data.find(b"\0", start)
            if end < 0:
                end = len(data)
        if not self._names_start <= start < end <= len(data):
            raise self._broken(index, f"name from {start} to {end} of {len(data)}")
        if end - start > limits.MAX_NAME_BYTES:
            raise self._broken(index, f"name of {end - start} bytes")
        return data[start:end]

    def entry(self, index: int) -> Entry:
        """Entry ``index``, its name checked as a name."""
        nid, _, file_type = _head_at(self._data, index * _DIRENT_BYTES)
        name = self.name(index)
        if file_type >= ondisk.EROFS_FT_MAX:
            raise self._broken(index, f"file type {file_type}")
        if b"/" in name or b"\0" in name:
            raise self._broken(index, f"name {name!r}")
        if name == b"." or name == b"..":
            if file_type not in (ondisk.EROFS_FT_DIR, ondisk.EROFS_FT_UNKNOWN):
                raise self._broken(index, f"{name!r} has file type {file_type}")
            if name == b"." and nid != self._directory.nid:
                raise self._broken(index, f"'.' is nid {nid:#x}")
        if index + 1 < self.count:
            next_position = self._offset + (index + 1) * _DIRENT_BYTES
        else:
            next_position = self._offset + len(self._data)
        return Entry(name, nid, _FILE_TYPES[file_type], next_position)

    def entries(self, start: int, before: bytes | None) -> list[Entry]:
        """The entries from index ``start`` on; each name comes behind the one before it.

        Args:
            start: index of the first entry.
            before: the name before it, if there is one.
        """
        found = []
        data, names_start, count = self._data, self._names_start, self.count
        own_nid = self._directory.nid
        heads = list(_heads(data[:names_start]))
        last_start = heads[-1][1]
        end = data.find(b"\0", last_start)
        if end < 0:
            end = len(data)
        # One look at all names in place of one at each.
        sound = b"/" not in data[names_start:end] and b"\0" not in data[names_start:last_start]
        ends = [head[1] for head in heads[1:]]
        ends.append(end)
        first, behind = self._offset + _DIRENT_BYTES, self._offset + len(data)
        positions = range(first, first + _DIRENT_BYTES * count, _DIRENT_BYTES)
        for index in range(start, count):
            nid, begin, file_type = heads[index]
            stop = ends[index]
            name = data[begin:stop]
            if (
                sound
                and names_start <= begin < stop <= end
                and stop - begin <= _MAX_NAME_BYTES
                and file_type < _TYPES
                and (
                    name not in _DOTS
                    or (file_type == ondisk.EROFS_FT_DIR and (name == b".." or nid == own_nid))
                )
            ):
                position = positions[index] if index + 1 < count else behind
                entry = _new(Entry, (name, nid, _FILE_TYPES[file_type], position))
            else:  # it is broken, or another one is
                entry = self.entry(index)
                name = entry.name
            if before is not None and name <= before:
                raise self._broken(index, f"name {name!r} behind {before!r}")
            before = name
            found.append(entry)
        return found

    def parent(self) -> Entry | None:
        """The entry ``..``, which is the second one as a rule."""
        if self.count > 1 and self.name(1) == b"..":
            return self.entry(1)
        return self.find(b"..")

    def find(self, name: bytes) -> Entry | None:
        """The entry of that name."""
        low, high = 0, self.count
        while low < high:  # halves each time
            middle = (low + high) >> 1
            found = self.name(middle)
            if found < name:
                low = middle + 1
            elif found > name:
                high = middle
            else:
                return self.entry(middle)
        return None

    def _broken(self, index: int, why: str) -> ImageFormatError:
        where = f"directory nid {self._directory.nid:#x}, block at {self._offset}"
        return ImageFormatError(f"{where}, entry {index}: {why}")


def start_index(position: int, block_bytes: int) -> int:
    """Index within its block of the entry that listing position ``position`` means."""
    return -(-(position % block_bytes) // _DIRENT_BYTES)

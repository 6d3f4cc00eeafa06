"""The kernel's list of mounts, which tells of a mount without touching it.

Asking the mount itself (``stat``, ``ismount``) would wait for its daemon.
Source: ``/proc/self/mountinfo`` in proc_pid_mountinfo(5).
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

FILE_SYSTEM_TYPE = "fuse.lazyfs"
KERNEL_TYPES = ("overlay", "erofs")
"""What a mount of the kernel driver is, by its number of layers."""
SOURCE_PREFIX = "lazyfs:"


class MountEntry(NamedTuple):
    """One mount that this process sees."""

    device: str
    """``MAJOR:MINOR``; the kernel gives it to nothing else while the file system lives."""
    mountpoint: str
    file_system_type: str
    source: str


def parse_mountinfo(text: bytes) -> list[MountEntry]:
    """The mounts in the order in which they were made: the last one at a place is on top.

    Lines that are not understood are left out.
    """
    entries = []
    for line in text.splitlines():
        fields = line.split(b" ")
        separator = fields.index(b"-") if b"-" in fields else len(fields)
        if separator < 6 or len(fields) < separator + 3:
            continue
        mountpoint, file_system_type, source = (
            os.fsdecode(_unescape(field))
            for field in (fields[4], fields[separator + 1], fields[separator + 2])
        )
        entries.append(MountEntry(fields[2].decode(), mountpoint, file_system_type, source))
    return entries


def current_mounts() -> list[MountEntry]:
    """The mounts of this process's mount namespace."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())


def is_lazyfs(entry: MountEntry | None) -> bool:
    """Whether a mount is of ours, by FUSE or by the kernel driver."""
    if entry is None:
        return False
    return entry.file_system_type == FILE_SYSTEM_TYPE or (
        entry.file_system_type in KERNEL_TYPES and entry.source.startswith(SOURCE_PREFIX)
    )


def top_mount(mountpoint: str, entries: list[MountEntry]) -> MountEntry | None:
    """What is mounted on ``mountpoint``, the newest if several are."""
    return next((entry for entry in reversed(entries) if entry.mountpoint == mountpoint), None)


def _unescape(field: bytes) -> bytes:
    """Undo the octal escapes of blank, tab, newline and backslash."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8) & 0xFF]), field)

"""Who keeps a mount busy, as far as /proc shows, without touching the mount."""

import os
from collections.abc import Iterator
from pathlib import Path

from lazyfs.mount.mountinfo import current_mounts

MAX_HOLDERS = 8


def holders(mountpoint: str) -> list[str]:
    """Processes and mounts that use ``mountpoint``, for a message; the first few."""
    below = mountpoint + "/"
    found = [
        f"a mount on {entry.mountpoint}"
        for entry in current_mounts()
        if entry.mountpoint.startswith(below) or entry.source.startswith(below)
    ]
    found += [f"the loop device {name}" for name in _loop_devices(below)]
    for process in Path("/proc").iterdir():
        if len(found) >= MAX_HOLDERS:
            found.append("others")
            break
        if process.name.isdigit() and (use := _use_of(process, mountpoint)):
            found.append(f"{_name(process)} (process {process.name}: {use})")
    return found


def _loop_devices(below: str) -> Iterator[str]:
    """Loop devices on files of the mount."""
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if backing.read_text().startswith(below):
                yield backing.parts[3]
        except OSError:
            continue


def _use_of(process: Path, mountpoint: str) -> str | None:
    """How a process uses the mount, or None if it seems not to."""
    for use, path in _paths(process):
        if path == mountpoint or path.startswith(mountpoint + "/"):
            return use
    return None


def _paths(process: Path) -> Iterator[tuple[str, str]]:
    """What a process has open; links in /proc are read, never followed."""
    for link, use in (("cwd", "working directory"), ("root", "root directory"), ("exe", "program")):
        yield use, _link(process / link)
    for folder, use in (("fd", "open file"), ("map_files", "mapped file")):
        try:
            names = os.listdir(process / folder)  # noqa: PTH208 - names alone, and cheaper
        except OSError:
            continue
        for name in names:
            yield use, _link(process / folder / name)


def _link(path: Path) -> str:
    try:
        return os.fspath(path.readlink()).removesuffix(" (deleted)")
    except OSError:
        return ""


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text(errors="replace").strip()
    except OSError:
        return "?"

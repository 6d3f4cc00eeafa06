"""Which mount a path belongs to, found without ever asking a mount: its daemon may be stuck."""

import os
from collections.abc import Collection
from typing import NamedTuple

from lazyfs.errors import MountError

MAX_LINKS = 40


class Location(NamedTuple):
    """A path inside a mount."""

    mountpoint: str
    path: str
    """From the root of the mount; begins with ``/``."""


def locate(path: str, mountpoints: Collection[str]) -> Location:
    """Find the mount, walking down from the root and stopping at the first mountpoint.

    Args:
        path: as the user wrote it.
        mountpoints: real paths.

    Raises:
        MountError: it is in none of them.
    """
    rest = os.path.abspath(path).split("/")[1:]  # noqa: PTH100 - pathlib would ask the mount
    current = ""
    links = 0
    while rest:
        name, *rest = rest
        if name == "..":
            current = os.path.dirname(current).rstrip("/")  # noqa: PTH120
            continue
        if name in ("", "."):
            continue
        current = f"{current}/{name}"
        if current in mountpoints:
            return Location(current, "/" + "/".join(rest))
        try:
            target = os.readlink(current)  # noqa: PTH115
        except OSError:
            continue
        links += 1
        if links > MAX_LINKS:
            break
        rest = target.split("/") + rest
        current = "" if target.startswith("/") else os.path.dirname(current).rstrip("/")  # noqa: PTH120
    raise MountError(f"{path} is not in a lazyfs mount")

"""Where a mount may go, and what a user means by a directory, without touching a mount there."""

import errno
import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from lazyfs.errors import MountError
from lazyfs.mount.mountinfo import current_mounts, is_lazyfs, top_mount

MAX_LINKS = 40


def resolve(directory: str) -> str:
    """The real path of ``directory``, as the kernel's list of mounts has it.

    The last component is never looked into, only asked whether it is a symbolic link: that
    needs no answer of a daemon that may be stuck or dead.

    Raises:
        MountError: too many symbolic links.
    """
    path = Path(directory)
    for _ in range(MAX_LINKS):
        if path.name in ("", ".."):
            return os.fspath(path.resolve())
        path = path.parent.resolve() / path.name
        try:
            target = path.readlink()
        except OSError:
            return os.fspath(path)
        path = path.parent / target
    raise MountError(f"{directory}: too many symbolic links")


class Mountpoint(NamedTuple):
    """A directory that can be mounted on."""

    path: str
    """Its real path."""
    created: bool
    """It did not exist before."""


def prepare(directory: str, needed: Iterable[Path], *, create: bool) -> Mountpoint:
    """Check that a directory can be mounted on.

    Args:
        directory: as the user wrote it.
        needed: places that the daemon uses and that the mount must not hide from it.
        create: make the directory if it does not exist.

    Raises:
        MountError: it cannot be, with what to do about it.
        OSError: it could not be created.
    """
    path = resolve(directory)
    top = top_mount(path, current_mounts())
    if top is not None and is_lazyfs(top):
        raise MountError(
            f"{directory} already has a lazyfs mount ({top.source}); "
            f'"lazyfs umount {directory}" takes it down'
        )
    created = create and _create(Path(path))
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError as error:
        raise MountError(f"{directory} does not exist (--mkdir creates it)") from error
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise MountError(f'{directory} has a dead mount; "umount {directory}" first') from error
        raise
    if not stat.S_ISDIR(mode):
        raise MountError(f"{directory} is not a directory")
    program = (Path(sys.prefix), Path(__file__))
    for place in (*needed, *program):
        if place.resolve().is_relative_to(path):
            raise MountError(f"a mount on {directory} would hide {place}, which lazyfs needs")
    return Mountpoint(path, created)


def _create(path: Path) -> bool:
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return False
    return True

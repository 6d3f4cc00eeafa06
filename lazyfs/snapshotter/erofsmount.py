"""Mounting a layer's file by the kernel's EROFS; blocking."""

import errno
import os
import subprocess
from pathlib import Path

from lazyfs.errors import MountError
from lazyfs.mount.mountinfo import current_mounts, top_mount
from lazyfs.mount.unmount import detach
from lazyfs.newmount import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    FileSystem,
    attach,
    is_missing,
)

EROFS = "erofs"

LOOP_WITHIN_S = 60.0


def is_mounted(directory: Path) -> bool:
    """Whether a layer is mounted there; asks the kernel's list, not the mount."""
    top = top_mount(os.fspath(directory), current_mounts())
    return top is not None and top.file_system_type == EROFS


def mount(image: Path, directory: Path) -> None:
    """Mount the file ``image``: without a loop device where the kernel can (Linux 6.12).

    Containers see it through overlayfs, whose own options decide about set-user-ID and devices.

    Raises:
        MountError: it cannot be mounted, or its bytes did not come.
    """
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        with FileSystem(EROFS) as erofs:
            erofs.set("source", os.fspath(image))
            descriptor = erofs.mount(MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
        try:
            attach(descriptor, os.fspath(directory))
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno != errno.ENOTBLK and not is_missing(error):
            raise MountError(f"{image.name}: {error}") from error
        _mount_by_loop(image, directory)


def _mount_by_loop(image: Path, directory: Path) -> None:
    words = ["mount", "-t", EROFS, "-o", "loop,ro,nosuid,nodev", "--"]
    try:
        done = subprocess.run(  # noqa: S603 - no shell; the paths are words behind "--"
            [*words, os.fspath(image), os.fspath(directory)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LOOP_WITHIN_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MountError(f"{image.name}: not mounted within {LOOP_WITHIN_S:g} s") from error
    if done.returncode != 0:
        raise MountError(f"{image.name}: {done.stderr.strip()}")


def unmount(directory: Path) -> None:
    """Take a layer's mounts off ``directory``; who still uses one keeps it until it is let go.

    Raises:
        MountError.
    """
    while is_mounted(directory):
        detach(os.fspath(directory), lazy=True)

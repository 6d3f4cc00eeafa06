"""A mount that can be written to: overlayfs over the image, its changes in a folder of their own.

The image is mounted on a directory that nobody else knows, the overlay on the user's, and then
the image is taken off that directory again: the overlay goes on using it, and the daemon ends with
the overlay, whatever takes that down. What ``status`` and ``umount`` go by, the runtime folder,
names the overlay from then on.

Root's overlays are the kernel's. Those of other users are fuse-overlayfs's, unless they are root
of a user namespace, whose overlays are the kernel's, too, with less (``USER_OPTIONS``).
"""

import contextlib
import ctypes
import os
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lazyfs.errors import MountError
from lazyfs.fuse.kernelmount import MS_NODEV, MS_NOSUID, MountChoice
from lazyfs.mount.census import escape_overlay_path
from lazyfs.mount.changes import RUNTIME_NAME, state_folder, sweep_changes
from lazyfs.mount.mountinfo import current_mounts, top_mount
from lazyfs.mount.request import MountRequest
from lazyfs.mount.unmount import detach

OPTIONS = ("redirect_dir=on", "metacopy=on", "index=on", "xino=auto")
"""Directories can be renamed; a change of owner or mode fetches and copies no data; hard links stay
one file; inode numbers stay when a file is written to."""

USER_OPTIONS = ("userxattr",)
"""Of overlays in a user namespace, where the others are not allowed."""

ALL_USERS = ["0", "0", "4294967295"]
"""What /proc/self/uid_map has outside of user namespaces."""

HELPER = "fuse-overlayfs"
HELPER_WITHIN_S = 30.0

PIN_NAME = "image"
"""In the folder of changes: which image they are changes of."""


def mount_writable(
    request: MountRequest, changes: Path | None, start: Callable[[MountRequest], None]
) -> None:
    """Mount an image so that it can be written to.

    Args:
        request: what to mount where.
        changes: the folder that has, and keeps, the changes; None: they go with the mount.
        start: mounts the image by itself, where a request says.

    Raises:
        MountError: it could not be mounted; nothing is left of it.
        Whatever ``start`` raises.
    """
    place = state_folder() / request.folder.path.name
    lower = place / "lower"
    try:
        lower.mkdir(parents=True)
        place.chmod(0o700)
        (place / RUNTIME_NAME).write_text(os.fspath(request.folder.path))
        start(replace(request, mountpoint=os.fspath(lower)))
        try:
            _cover(request, lower, changes or place)
        finally:
            detach(os.fspath(lower), lazy=True)
    except BaseException:
        sweep_changes(place)
        raise


def _cover(request: MountRequest, lower: Path, changes: Path) -> None:
    """Put the overlay where the user wants it, and note that.

    Raises:
        MountError.
    """
    state = request.folder.read_state()
    if state is None:
        raise MountError(f"{request.image}: the daemon has died")
    _check_image(changes, state.pin)
    upper, work = changes / "upper", changes / "work"
    if not upper.exists():
        root = lower.stat()
        upper.mkdir(parents=True)
        if os.geteuid() == 0:
            os.chown(upper, root.st_uid, root.st_gid)
        upper.chmod(stat.S_IMODE(root.st_mode))
        os.utime(upper, ns=(root.st_atime_ns, root.st_mtime_ns))
    work.mkdir(exist_ok=True)
    _overlay(request, {"lowerdir": lower, "upperdir": upper, "workdir": work})
    if state.pin is not None:
        (changes / PIN_NAME).write_text(state.pin)
    top = top_mount(request.mountpoint, current_mounts())
    device = None if top is None else top.device
    request.folder.write_state(
        replace(state, mountpoint=request.mountpoint, device=device, changes=os.fspath(changes))
    )


def _check_image(changes: Path, pin: str | None) -> None:
    """See that changes are of this image.

    Raises:
        MountError: they are of another one: in an overlay over this one they would mean nothing.
    """
    with contextlib.suppress(FileNotFoundError):
        if (changes / PIN_NAME).read_text() != pin:
            raise MountError(f"{changes} has changes of another image, or of another version of it")


def in_user_namespace() -> bool:
    """Whether we are in one other than the machine's own."""
    return Path("/proc/self/uid_map").read_text().split() != ALL_USERS


def _overlay(request: MountRequest, folders: dict[str, Path]) -> None:
    words = [f"{name}={escape_overlay_path(os.fspath(path))}" for name, path in folders.items()]
    if os.geteuid() != 0:
        _by_helper(request.mountpoint, words)
        return
    data = ",".join([*words, *(USER_OPTIONS if in_user_namespace() else OPTIONS)])
    options = request.options
    flags = (0 if options.suid else MS_NOSUID) | (0 if options.dev else MS_NODEV)
    source = MountChoice(request.image, options.allow_other, options.suid, options.dev).fsname
    libc = ctypes.CDLL(None, use_errno=True)
    target, kind = os.fsencode(request.mountpoint), b"overlay"
    if libc.mount(source.encode(), target, kind, ctypes.c_ulong(flags), os.fsencode(data)) != 0:
        raise MountError(
            f"overlayfs on {request.mountpoint} with changes in {folders['upperdir'].parent}: "
            f"{os.strerror(ctypes.get_errno())} (the kernel's log may say more; "
            "changes must be on a disk's file system, and in one overlay at a time)"
        )


def _by_helper(mountpoint: str, words: list[str]) -> None:
    """Mount as a user may.

    Raises:
        MountError: with what the helper says.
    """
    # All files are the user's then, or he could change nothing of root's.
    words = [*words, f"squash_to_uid={os.getuid()}", f"squash_to_gid={os.getgid()}"]
    command = [HELPER, "-o", ",".join(words), mountpoint]
    try:
        done = subprocess.run(  # noqa: S603 - no shell
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=HELPER_WITHIN_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise MountError(
            f"without root --rw needs the package {HELPER}, or a user namespace (unshare -Urm)"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise MountError(f"{HELPER} did not mount in time") from error
    if done.returncode != 0:
        raise MountError(f"{HELPER}: {done.stderr.strip() or 'failed'}")

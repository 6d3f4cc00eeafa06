"""Taking a mount down, whatever state its daemon is in."""

import contextlib
import ctypes
import errno
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from lazyfs.errors import MountError
from lazyfs.mount import roles
from lazyfs.mount.holders import holders
from lazyfs.mount.mountinfo import current_mounts, is_lazyfs, top_mount
from lazyfs.mount.mountpoint import resolve
from lazyfs.mount.runtime import KnownMount, RuntimeFolder, known_mounts

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
# sys/mount.h

END_WITHIN_S = 5.0
"""How long a daemon whose mount is gone may take to end before it is killed."""

FUSERMOUNT_WITHIN_S = 30.0


def unmount(directory: str, *, lazy: bool) -> None:
    """Unmount ``directory``, see its daemon end, and remove its runtime folder.

    A dead daemon's mount goes even if it is in use: nobody can use it.

    Args:
        directory: as the user wrote it.
        lazy: detach it now; its daemon serves who still uses it, and ends with the last.

    Raises:
        MountError: it is no lazyfs mount, or busy (with who holds it), or may not be unmounted.
    """
    mountpoint = resolve(directory)
    here = [mount for mount in known_mounts() if mount.state.mountpoint == mountpoint]
    top = top_mount(mountpoint, current_mounts())
    known = next((mount for mount in here if top and mount.state.device == top.device), None)
    if known is None and not is_lazyfs(top):
        _forget_dead(directory, here)
        return
    with _watched(known) as processes:
        dead = known is not None and not processes and not known.local
        detach(mountpoint, lazy=lazy or dead)
        if known is None or (lazy and processes):
            return
        for process in processes:
            _wait_for_end(process)
        known.folder.remove()


def remove_mount(mountpoint: str) -> None:
    """Remove a lazyfs mount that should not be there, used or not; no error if there is none."""
    top = top_mount(mountpoint, current_mounts())
    if is_lazyfs(top):
        with contextlib.suppress(MountError):
            detach(mountpoint, lazy=True)


def remove_mount_of(folder: str) -> None:
    """Remove the mount of a runtime folder, used or not, unless another is in its place."""
    state = RuntimeFolder(Path(folder)).read_state()
    top = None if state is None else top_mount(state.mountpoint, current_mounts())
    if state is not None and top is not None and top.device == state.device:
        with contextlib.suppress(MountError):
            detach(state.mountpoint, lazy=True)


def detach(mountpoint: str, *, lazy: bool) -> None:
    """Take the topmost mount off ``mountpoint``.

    Raises:
        MountError: busy, or not allowed.
    """
    try:
        if os.geteuid() == 0:
            _umount2(mountpoint, UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0))
        else:
            _fusermount(mountpoint, lazy=lazy)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise MountError(f"cannot unmount {mountpoint}: {error.strerror}") from error
        found = holders(mountpoint)
        held = f"held by {', '.join(found)}" if found else "held by nobody that can be seen"
        raise MountError(f"{mountpoint} is busy: {held} (--lazy detaches it anyway)") from error


def _umount2(mountpoint: str, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(mountpoint), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), mountpoint)


def _fusermount(mountpoint: str, *, lazy: bool) -> None:
    """Unmount as a user may: by the helper that FUSE brings."""
    words = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", mountpoint]
    try:
        done = subprocess.run(  # noqa: S603 - no shell; the path is one word behind "--"
            words,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=FUSERMOUNT_WITHIN_S,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except FileNotFoundError as error:
        raise MountError("fusermount3 is missing; the package is called fuse3") from error
    except subprocess.TimeoutExpired as error:
        raise MountError(f"fusermount3 did not unmount {mountpoint} in time") from error
    if done.returncode != 0:
        said = done.stderr.strip()
        busy = os.strerror(errno.EBUSY) in said
        raise OSError(errno.EBUSY if busy else errno.EPERM, said or "fusermount3 failed")


@contextlib.contextmanager
def _watched(known: KnownMount | None) -> Iterator[list[int]]:
    """Descriptors of the daemon and of the supervisor that waits for its end; those that live."""
    found = []
    if known is not None:
        for role in (roles.DAEMON, roles.SUPERVISOR):
            descriptor = roles.open_holder(known.folder.processes, role)
            if descriptor is not None:
                found.append(descriptor)
    try:
        yield found
    finally:
        for descriptor in found:
            os.close(descriptor)


def _wait_for_end(daemon: int) -> None:
    """Wait until the process is gone; one that hangs has nothing left to serve and is killed."""
    watch = select.poll()
    watch.register(daemon, select.POLLIN)
    if not watch.poll(END_WITHIN_S * 1000):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(daemon, signal.SIGKILL)
        watch.poll(END_WITHIN_S * 1000)


def _forget_dead(directory: str, here: list[KnownMount]) -> None:
    """Tidy up where no mount is.

    Raises:
        MountError: there was nothing to tidy up either.
    """
    dead = [mount for mount in here if not mount.alive]
    for mount in dead:
        mount.folder.remove()
    if not dead:
        starting = [mount for mount in here if mount.state.device is None]
        if starting:
            raise MountError(
                f"{directory} is being mounted by process {starting[0].state.pid}, not mounted yet"
            )
        raise MountError(f"{directory} is not a lazyfs mount")

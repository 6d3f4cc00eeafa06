"""A mount as a service of systemd, which keeps its descriptor and starts the next daemon.

The service is ``lazyfs mount --foreground``; ``docs/systemd`` has a unit. What systemd says comes
in environment variables; they are removed, since they are not meant for programs that we start.
"""

import contextlib
import fcntl
import logging
import os
import select
from dataclasses import dataclass
from typing import NamedTuple

from lazyfs.errors import MountError
from lazyfs.mount.keeper import Keeper, kept_by_systemd, systemd
from lazyfs.mount.logs import JsonFormatter
from lazyfs.mount.mountinfo import current_mounts, is_lazyfs, top_mount
from lazyfs.mount.runtime import RuntimeFolder, base_folder, known_mounts
from lazyfs.mount.unmount import unmount

NAME_PREFIX = "lazyfs-"
"""Of descriptors in the store; what follows is the name of the runtime folder."""

VARIABLES = (
    *("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"),
    *("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"),
)

PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}
"""What the journal calls our levels (``<N>`` before a line, sd-daemon(3))."""


class TakenOver(NamedTuple):
    """A mount that the process before us has served."""

    folder: RuntimeFolder
    lock: int
    device: int


@dataclass(frozen=True, slots=True)
class Service:
    """What systemd has for this process."""

    keeper: Keeper | None = None
    taken_over: TakenOver | None = None


def begin(mountpoint: str, image: str) -> Service:
    """Find out whether this process is a service, and whether it has a mount to go on with.

    A mount that cannot be gone on with is removed, so that a new one can take its place.

    Args:
        mountpoint: a real path.
        image: what shall be mounted there.

    Raises:
        MountError: systemd cannot be reached, or what is left of a mount cannot be removed.
    """
    keeper = systemd(os.environ)
    kept = kept_by_systemd(os.environ)
    for variable in VARIABLES:
        os.environ.pop(variable, None)
    if keeper is None:
        return Service()
    log_to_journal()
    taken_over = None
    for name, device in kept.items():
        found = _mount_of(name, device, mountpoint, image) if taken_over is None else None
        if found is None:
            keeper.drop(name)
            os.close(device)
        taken_over = taken_over or found
    if taken_over is None:
        _clear(mountpoint)
    return Service(keeper, taken_over)


def descriptor_name(folder: RuntimeFolder) -> str:
    """How a keeper knows the mount of a runtime folder."""
    return NAME_PREFIX + folder.path.name


def log_to_journal() -> None:
    """Log with the priorities of the journal."""
    for handler in logging.getLogger().handlers:
        form = handler.formatter
        if not isinstance(form, JsonFormatter):
            form = logging.Formatter("%(name)s: %(message)s")  # the journal knows the time
        handler.setFormatter(_JournalFormatter(form))


class _JournalFormatter(logging.Formatter):
    def __init__(self, form: logging.Formatter) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        """Every line with its priority."""
        prefix = f"<{PRIORITIES.get(record.levelno, 5)}>"
        return prefix + self._form.format(record).replace("\n", f"\n{prefix}")


def _mount_of(name: str, device: int, mountpoint: str, image: str) -> TakenOver | None:
    """The mount behind a kept descriptor, if it is the wanted one and lives."""
    if not name.startswith(NAME_PREFIX) or "/" in name:
        return None
    folder = RuntimeFolder(base_folder() / name.removeprefix(NAME_PREFIX))
    state = folder.read_state()
    if (
        state is None
        or state.device is None
        or (state.mountpoint, state.image)
        != (
            mountpoint,
            image,
        )
    ):
        return None
    watch = select.poll()
    watch.register(device, 0)
    if watch.poll(0):
        return None  # unmounted or aborted
    lock = os.open(folder.path / "lock", os.O_RDWR | os.O_CLOEXEC)
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return TakenOver(folder, lock, device)
    os.close(lock)
    return None


def _clear(mountpoint: str) -> None:
    """Remove a mount whose daemon died without anybody keeping it."""
    top = top_mount(mountpoint, current_mounts())
    if not is_lazyfs(top):
        return
    here = [mount for mount in known_mounts() if mount.state.mountpoint == mountpoint]
    if any(mount.alive for mount in here):
        raise MountError(f"{mountpoint} is served by another process")
    unmount(mountpoint, lazy=True)

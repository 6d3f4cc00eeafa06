"""The runtime folder: what is known about each mount, outside of its daemon.

Every mount has a folder of its own in ``base_folder()``:

    lock             held (flock) by supervisor and daemon: the kernel lets go when both are dead
    processes        which processes these are (``lazyfs.mount.roles``)
    state.json       MountState
    supervisor.json  SupervisorReport
    control.sock     answers each connection with one JSON document
    log              what supervisor and daemon in the background say

A folder appears complete and locked (it is renamed into place), so a folder whose lock is
free belongs to a mount whose processes are all dead.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lazyfs.errors import MountError
from lazyfs.mount import roles
from lazyfs.mount.loops import are_local
from lazyfs.mount.mountinfo import MountEntry, current_mounts, top_mount
from lazyfs.mount.supervision import REPORT_NAME


@dataclass(frozen=True, slots=True)
class MountState:
    """Facts about a mount that do not change while a daemon serves it."""

    mountpoint: str
    image: str
    pid: int
    """The latest daemon; before it has mounted, the process that starts it."""
    started_s: float
    """Seconds since the epoch, when the mount was made."""
    device: str | None = None
    """``MAJOR:MINOR`` of the mount; None before it is made."""
    pin: str | None = None
    """What the image was when it was mounted, for ``MountOptions.pin``."""
    kept_by: str | None = None
    """Who keeps the mount when its daemon dies."""
    not_kept: str | None = None
    """Why nobody does."""
    driver: str | None = None
    """What serves the files: ``fuse`` or ``kernel``; None before it was chosen."""
    driver_why: str | None = None
    changes: str | None = None
    """Where a mount that can be written to keeps what is written; None: it cannot be."""
    loops: dict[str, str] | None = None
    """The loop devices under a mount of the kernel driver, by the names of the layer files."""
    restarts: int = 0
    """How often another daemon took over."""
    cache_dir: str | None = None
    """Where its cache is; None: a mount of an older version."""


@dataclass(frozen=True, slots=True)
class SupervisorReport:
    """What a supervisor says of its daemons; its keys in ``supervisor.json`` have these names."""

    phase: str
    """``starting``, ``serving``, ``pausing``, ``gave up`` or ``died``."""
    deaths: int
    """Daemons that died without being asked to."""
    last_end: str
    """How the last one ended, for a person; empty if none has."""
    problem: str | None


@dataclass(frozen=True, slots=True)
class RuntimeFolder:
    """The folder of one mount."""

    path: Path

    @property
    def log(self) -> Path:
        """What the daemon says."""
        return self.path / "log"

    @property
    def control(self) -> Path:
        """The daemon's socket."""
        return self.path / "control.sock"

    @property
    def processes(self) -> str:
        """The file of ``lazyfs.mount.roles``."""
        return os.fspath(self.path / roles.FILE_NAME)

    def write_state(self, state: MountState) -> None:
        """Replace the state; a reader sees the old or the new one."""
        new = self.path / ".state.json"
        new.write_text(json.dumps(dataclasses.asdict(state)))
        new.replace(self.path / "state.json")

    def read_state(self) -> MountState | None:
        """The state; None if the folder is gone or not one of ours."""
        try:
            return MountState(**json.loads((self.path / "state.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def supervisor_report(self) -> SupervisorReport | None:
        """What the supervisor said last; None if there is, or was, none."""
        try:
            return SupervisorReport(**json.loads((self.path / REPORT_NAME).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def is_alive(self) -> bool:
        """Whether supervisor or daemon, or the process that starts them, lives."""
        return is_held(self.path / "lock")

    def remove(self) -> None:
        """Remove the folder; not an error if it is gone."""
        shutil.rmtree(self.path, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class KnownMount:
    """A mount as the runtime folder and the kernel tell of it."""

    folder: RuntimeFolder
    state: MountState
    alive: bool
    """Its supervisor or its daemon lives, or both."""
    mounted: bool
    """The kernel has the mount in its place."""

    @property
    def local(self) -> bool:
        """Whether it needs no daemon (``lazyfs.mount.promotion``)."""
        return self.mounted and are_local(self.state.loops)


def is_held(lock: Path) -> bool:
    """Whether a living process has locked a file; nobody has if it is not there."""
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def base_folder() -> Path:
    """The folder of this user's runtime folders; it is created if needed.

    Raises:
        MountError: it is not safely ours.
    """
    user = os.geteuid()
    if user == 0 and os.access("/run", os.W_OK):  # root of a user namespace may not
        path = Path("/run/lazyfs")
    elif runtime := os.environ.get("XDG_RUNTIME_DIR"):
        path = Path(runtime) / "lazyfs"
    else:
        path = Path(tempfile.gettempdir()) / f"lazyfs-{user}"
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != user or found.st_mode & 0o077:
        raise MountError(f"{path} is not a folder that only its owner (user {user}) may use")
    return path


def create_folder(state: MountState) -> tuple[RuntimeFolder, int]:
    """Make the folder of a new mount; return it with the descriptor that holds its lock.

    Raises:
        MountError: another process has, or is making, a mount in the same place.
        OSError: the folder could not be made.
    """
    base = base_folder()
    unfinished = RuntimeFolder(Path(tempfile.mkdtemp(prefix=".new-", dir=base)))
    lock = os.open(unfinished.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    unfinished.write_state(state)
    folder = RuntimeFolder(unfinished.path.rename(base / secrets.token_hex(6)))
    for other in known_mounts():
        same_place = other.state.mountpoint == state.mountpoint and other.folder != folder
        if same_place and other.alive and (other.mounted or other.state.device is None):
            folder.remove()
            os.close(lock)
            raise MountError(
                f"{state.mountpoint} has, or is about to have, a lazyfs mount "
                f"(process {other.state.pid})"
            )
    return folder, lock


def known_mounts() -> list[KnownMount]:
    """All mounts of this user, in the order in which they were started."""
    entries = current_mounts()
    return sorted(_known_mounts(entries), key=lambda mount: mount.state.started_s)


def _known_mounts(entries: list[MountEntry]) -> Iterator[KnownMount]:
    for path in base_folder().iterdir():
        folder = RuntimeFolder(path)
        if path.name.startswith(".") or (state := folder.read_state()) is None:
            continue
        alive = folder.is_alive()
        top = top_mount(state.mountpoint, entries)
        mounted = top is not None and top.device == state.device
        yield KnownMount(folder, state, alive, mounted)


def sweep() -> None:
    """Remove what dead daemons left whose mounts are gone too."""
    for mount in known_mounts():
        if not mount.alive and not mount.mounted:
            mount.folder.remove()

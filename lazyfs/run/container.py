"""The folder of a container: all that is known of it, and all that must go with it.

``.containers/NAME`` in the runtime folder:

    lock            held (flock) by lazyfs run and by the runtime: free when both are dead
    container.json  its image, and the runtime
    config.json     for the runtime
    rootfs          where the image is mounted
    hosts, hostname, resolv.conf   of the container's /etc
    log             what the runtime says
    state           the runtime's own

A folder whose lock is free belongs to nobody: the next ``lazyfs run`` ends what runs in there, if
anything does, and removes it.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lazyfs.errors import LazyfsError, RunError
from lazyfs.mount.changes import sweep_changes
from lazyfs.mount.mountinfo import current_mounts, top_mount
from lazyfs.mount.runtime import base_folder, is_held, known_mounts
from lazyfs.mount.unmount import unmount
from lazyfs.run.runtime import Runtime, find_runtime

FOLDER_NAME = ".containers"
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")


@dataclass(frozen=True, slots=True)
class Container:
    """A container's folder."""

    path: Path

    @property
    def name(self) -> str:
        """Its name, for us and for the runtime."""
        return self.path.name

    @property
    def root(self) -> Path:
        """Where its image is mounted."""
        return self.path / "rootfs"

    @property
    def state(self) -> Path:
        """The runtime's folder."""
        return self.path / "state"

    @property
    def log(self) -> Path:
        """What the runtime says."""
        return self.path / "log"

    def is_left(self) -> bool:
        """Whether neither its lazyfs run nor its runtime lives."""
        return not is_held(self.path / "lock")

    def remove(self, runtime: Runtime | None) -> None:
        """End it if it runs, unmount its root, and remove all that was its own.

        Raises:
            RunError: its root is still mounted.
        """
        if runtime is not None and self.state.is_dir():
            runtime.call(self.state, "delete", "--force", self.name)
        root = os.fspath(self.root)
        if any(mount.state.mountpoint == root for mount in known_mounts()):
            try:
                unmount(root, lazy=False)
            except LazyfsError:
                with contextlib.suppress(LazyfsError):
                    unmount(root, lazy=True)
        sweep_changes()
        if top_mount(root, current_mounts()) is not None:
            raise RunError(f"{root} could not be unmounted; its container stays for now")
        shutil.rmtree(self.path, ignore_errors=True)


def _folder() -> Path:
    return base_folder() / FOLDER_NAME


@contextlib.contextmanager
def new_container(name: str, image: str, runtime: Runtime) -> Iterator[tuple[Container, int]]:
    """A container's folder, and the descriptor that holds its lock; removed with the block.

    Raises:
        RunError: the name is taken, or none.
    """
    if NAME.fullmatch(name) is None:
        raise RunError(f"{name!r} is not a name for a container (letters, digits, _ . -)")
    folder = _folder()
    folder.mkdir(exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".new-", dir=folder))
    lock = os.open(unfinished / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        facts = {"image": image, "runtime": runtime.name, "pid": os.getpid()}
        (unfinished / "container.json").write_text(json.dumps(facts))
        (unfinished / "rootfs").mkdir()
        (unfinished / "state").mkdir()
        container = Container(folder / name)
        try:
            unfinished.rename(container.path)
        except OSError as error:
            shutil.rmtree(unfinished)
            raise RunError(f"there is a container {name!r} already") from error
        try:
            yield container, lock
        finally:
            container.remove(runtime)
    finally:
        os.close(lock)


def left_containers() -> list[Container]:
    """Containers whose lazyfs run and runtime are dead."""
    try:
        paths = [path for path in _folder().iterdir() if not path.name.startswith(".new-")]
    except FileNotFoundError:
        return []
    return [container for container in map(Container, sorted(paths)) if container.is_left()]


def sweep_containers() -> list[str]:
    """Remove what dead ones have left; what could not be, and why."""
    problems = []
    for container in left_containers():
        try:
            facts = json.loads((container.path / "container.json").read_text())
            container.remove(find_runtime(str(facts["runtime"])))
        except (LazyfsError, OSError, ValueError, KeyError) as error:
            problems.append(f"{container.path}: {error}")
    return problems

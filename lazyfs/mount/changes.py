"""The folders of writable mounts: where they are, and removing those whose mounts are gone.

Apart from ``lazyfs.mount.writable``, which makes them, since most commands want no more than this.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from lazyfs.errors import MountError
from lazyfs.mount.mountinfo import current_mounts
from lazyfs.mount.runtime import base_folder
from lazyfs.mount.unmount import detach

RUNTIME_NAME = "runtime"
"""In an overlay's place: its runtime folder."""


def state_folder() -> Path:
    """Where overlays have what they need while they are mounted."""
    if os.geteuid() == 0 and os.access("/var/lib", os.W_OK):
        return Path("/var/lib/lazyfs/rw")
    import platformdirs  # only now: root needs it not

    return platformdirs.user_state_path("lazyfs") / "rw"


def sweep_changes(failed: Path | None = None) -> None:
    """Remove what overlays that are gone have left; ``failed`` is the place of one."""
    left = left_changes()
    for place in left if failed is None or failed in left else [failed, *left]:
        if not _in_use(place):
            _remove(place)


def left_changes() -> list[Path]:
    """What overlays that are gone have left.

    Only of those whose runtime folders are where ours are: of others, which a container or a
    session of its own may have elsewhere, nothing can be known from here.
    """
    base = base_folder()
    left = []
    for note in state_folder().glob(f"*/{RUNTIME_NAME}"):
        runtime = Path(note.read_text())
        if runtime.parent == base and not runtime.exists():
            left.append(note.parent)
    return left


def _in_use(place: Path) -> bool:
    """Whether something is mounted below, even after what may be detached was."""
    for _ in range(2):
        below = [entry for entry in current_mounts() if Path(entry.mountpoint).parent == place]
        for entry in below:
            with contextlib.suppress(MountError):
                detach(entry.mountpoint, lazy=True)
        if not below:
            return False
    return True


def _remove(place: Path) -> None:
    """Remove a folder, also of a user who took his own rights away in there."""

    def permit(remove: Callable[[str], None], path: str, _: object) -> None:
        with contextlib.suppress(OSError):
            Path(path).parent.chmod(0o700)
            if stat.S_ISDIR(os.lstat(path).st_mode):
                Path(path).chmod(0o700)
                shutil.rmtree(path, ignore_errors=True)
            else:
                remove(path)

    shutil.rmtree(place, onerror=permit)


def is_temporary(changes: str) -> bool:
    """Whether a folder of changes goes with its mount."""
    return Path(changes).parent == state_folder()

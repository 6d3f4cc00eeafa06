"""Commands run by the user nobody, where /dev/fuse is open to all, as it is on most machines."""

import contextlib
import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NOBODY = 65534
FUSE_DEVICE = os.makedev(10, 229)
COMMAND_WITHIN_S = 180
SCRIPT = """
mount --bind "$0/fuse" /dev/fuse
exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"
"""


@dataclass(frozen=True)
class Nobody:
    """A home for the user; each command has a mount namespace of its own."""

    folder: Path
    """Everybody can read it, root can write to it."""
    home: Path

    def run(self, *command: str | Path, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end."""
        return subprocess.run(
            ["unshare", "-m", "sh", "-c", SCRIPT, self.folder, *command],
            cwd=self.home,
            env={
                **os.environ,
                "HOME": os.fspath(self.home),
                "TMPDIR": os.fspath(self.home),
                "XDG_RUNTIME_DIR": os.fspath(self.home),
                **variables,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_WITHIN_S,
            check=False,
        )


@contextlib.contextmanager
def nobody() -> Iterator[Nobody]:
    """The user, with a home that is removed at the end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "home").mkdir()
        os.chown(folder / "home", NOBODY, NOBODY)
        os.mknod(folder / "fuse", stat.S_IFCHR | 0o666, FUSE_DEVICE)
        (folder / "fuse").chmod(0o666)
        yield Nobody(folder, folder / "home")

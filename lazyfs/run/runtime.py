"""Which OCI runtime runs containers, and what this machine lets it do."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from lazyfs.errors import RunError
from lazyfs.mount.writable import in_user_namespace

RUNTIMES = ("crun", "runc")
COMMAND_WITHIN_S = 30.0

CGROUPS = Path("/sys/fs/cgroup")

ONLY_CGROUP2 = """\
mount --bind /sys/fs/cgroup/unified /sys/fs/cgroup 2>/dev/null || mount -t tmpfs none /sys/fs/cgroup
exec "$@"
"""
"""crun refuses to start where it sees cgroups of both versions: it is shown the second only."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime, and how it is called here."""

    name: str
    limits: str | None
    """Why it cannot limit what a container uses; None: it can."""
    prefix: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def command(self, state: Path, *words: str) -> list[str]:
        """A command line of the runtime, which keeps its state in a folder of ours."""
        return [*self.prefix, self.name, "--root", os.fspath(state), *self.options, *words]

    def call(self, state: Path, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run a short command of it.

        Raises:
            RunError: it does not end.
        """
        try:
            return subprocess.run(  # noqa: S603 - no shell
                self.command(state, *words),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=COMMAND_WITHIN_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RunError(f"{self.name}: {error}") from error


def find_runtime(wish: str | None) -> Runtime:
    """The runtime to use; crun unless only runc can limit what a container uses here.

    Raises:
        RunError: there is none.
    """
    found = [name for name in ([wish] if wish else RUNTIMES) if shutil.which(name)]
    if not found:
        raise RunError(f"{wish or ' or '.join(RUNTIMES)} is not installed")
    runtimes = [_runtime(name) for name in found]
    return next((runtime for runtime in runtimes if runtime.limits is None), runtimes[0])


def _runtime(name: str) -> Runtime:
    base = Path(name).name
    alone = (CGROUPS / "cgroup.controllers").exists()
    wrapper = () if alone or base != "crun" else ("unshare", "-m", "sh", "-c", ONLY_CGROUP2, "sh")
    if in_user_namespace():
        off = ("--cgroup-manager=disabled",) if base == "crun" else ("--rootless", "true")
        return Runtime(name, "a user namespace has no control groups", wrapper, off)
    if not wrapper:
        return Runtime(name, None)
    why = "this machine has control groups of both versions, which crun cannot use; runc can"
    return Runtime(name, why, wrapper, ("--cgroup-manager=disabled",))

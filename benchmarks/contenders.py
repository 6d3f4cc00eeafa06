"""Ways to come from an image to a tree that can be read.

To add one: a class with ``prepare``, ``start`` and ``stop``, and a line in ``for_image`` or
``for_file``.
"""

import json
import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from benchmarks.images import DebianImage, decode_layers
from benchmarks.system import memory_of, run, unmount_below, wait_until
from benchmarks.workloads import Workload
from lazyfs.mount.asking import MEANWHILE

LAZYFS = (sys.executable, "-m", "lazyfs")
IMPORTED = (
    "lazyfs.cli.mount",
    "lazyfs.cli.umount",
    "registry.remote",
    *MEANWHILE,
    "lazyfs.mount.stacker",
    "lazyfs.mount.__main__",
)
"""What of us a mount needs."""
STARTED_WITHIN_S = 30
FILLED_WITHIN_S = 120


class State(StrEnum):
    """What a contender starts from; nothing of it is in memory, the programs are."""

    COLD = "cold"
    """Nothing of the image is on this machine."""
    DISK = "disk"
    """All of it is on the local disk."""


class Contender(ABC):
    """One way; ``folder`` is its own."""

    states: Sequence[State] = (State.DISK,)
    ready: Sequence[State] = ()
    """States in which there is nothing to start."""
    programs: Sequence[Sequence[str]] = ()
    """Commands that bring its programs into memory and do nothing else."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder / name
        self.root = self.folder / "root"
        self.root.mkdir(parents=True)

    def takes(self, workload: Workload, state: State) -> bool:
        """Whether the figure is wanted."""
        return True

    def prepare(self, state: State) -> None:  # noqa: B027 - there may be nothing to do
        """Come into a state; not timed, called before each start."""

    @abstractmethod
    def start(self, state: State) -> None:
        """Make ``root`` readable; timed."""

    def stop(self) -> None:
        """Undo ``start``, also one that failed halfway or never was."""
        unmount_below(self.folder)

    def pid(self) -> int | None:
        """The process that serves the tree, if there is one."""
        return None

    def facts(self) -> dict[str, float]:
        """Figures to note after a workload: those of ``memory_of`` and what else there is."""
        pid = self.pid()
        return memory_of(pid) if pid else {}

    def abort(self) -> None:
        """End a workload that hangs, from another thread: by force, FUSE gives readers errors."""
        run("umount", "--force", self.root, check=False)


class Lazyfs(Contender):
    """Our mount, by FUSE or by the kernel's EROFS on layers that we serve."""

    programs = (
        (*LAZYFS, "mount", "--help"),
        (sys.executable, "-c", f"import {', '.join(IMPORTED)}"),
        ("fusermount3", "--version"),
    )

    def __init__(
        self,
        name: str,
        folder: Path,
        image: str,
        *,
        remote: bool,
        verify: str = "always",
        reads_only: bool = False,
        driver: str = "fuse",
        options: Sequence[str] = (),
    ) -> None:
        super().__init__(name, folder)
        self._image = image
        self._options = ("--verify", verify, "--driver", driver, *options)
        self._reads_only = reads_only
        self._caches = {
            State.COLD: self.folder / "cold-cache",
            State.DISK: folder / "full-cache",  # one for all ways of verifying
        }
        self._full = not remote
        if remote and not reads_only:
            self.states = (State.COLD, State.DISK)

    def takes(self, workload: Workload, state: State) -> bool:
        """Only what reads data, where just that is to be compared."""
        return workload.reads or not self._reads_only

    def prepare(self, state: State) -> None:
        """Empty the cache, or fill it."""
        if state is State.COLD:
            shutil.rmtree(self._caches[state], ignore_errors=True)
        elif not self._full:
            self._mount(self._caches[state], "--prefetch", "all")
            wait_until(self._all_fetched, f"all of {self._image}", FILLED_WITHIN_S)
            self.stop()
            self._full = True

    def start(self, state: State) -> None:
        """Mount it."""
        self._mount(self._caches[state])

    def _mount(self, cache: Path, *options: str) -> None:
        words = ("--quiet", "--cache-dir", os.fspath(cache), *self._options, *options)
        run(*LAZYFS, "mount", *words, self._image, self.root)

    def _all_fetched(self) -> bool:
        layers = self._status()["layers"]
        return all(layer["chunks"] == layer["chunks_cached"] for layer in layers)

    def _status(self) -> dict[str, Any]:
        """Of the mount on the directory; one that was detached may still be ending."""
        found: list[dict[str, Any]] = json.loads(run(*LAZYFS, "status", "--json", self.root))
        return max(found, key=lambda status: float(status["started_s"]))

    def stop(self) -> None:
        """Unmount it, and wait for the daemon to end."""
        run(*LAZYFS, "umount", "--lazy", self.root, check=False)
        super().stop()

    def facts(self) -> dict[str, float]:
        """What the daemon counts, and its memory."""
        status = self._status()
        return {
            "fetched_bytes": status["totals"]["fetched_bytes"],
            "requests": status["totals"]["requests"],
            "read_bytes": status["fuse"]["read_bytes"],
            "fuse_requests": sum(status["fuse"]["operations"].values()),
            **memory_of(status["pid"]),
        }


class KernelErofs(Contender):
    """The kernel's EROFS on loop devices, with overlayfs where there are several layers."""

    programs: Sequence[Sequence[str]] = (("mount", "--version"), ("losetup", "--version"))

    def __init__(self, name: str, folder: Path, layers: Sequence[Path]) -> None:
        super().__init__(name, folder)
        self.layers = layers
        """The lowest first."""

    def start(self, state: State) -> None:
        """Mount the layers, and overlayfs over them."""
        self.mount(self.layers)

    def mount(self, layers: Sequence[Path]) -> None:
        """Mount decoded layers on ``root``."""
        places = [self.folder / f"layer-{number}" for number in range(len(layers))]
        if len(layers) == 1:
            places = [self.root]
        for layer, place in zip(layers, places, strict=True):
            place.mkdir(exist_ok=True)
            run("mount", "-t", "erofs", "-o", "ro,loop,nodev", layer, place)
        if len(layers) > 1:
            lower = ":".join(os.fspath(place) for place in reversed(places))
            run("mount", "-t", "overlay", "-o", f"ro,lowerdir={lower}", "overlay", self.root)


class PullErofs(KernelErofs):
    """Pull all of the EROFS image, decompress it, let the kernel mount it."""

    states = (State.COLD,)
    programs = (*KernelErofs.programs, ("skopeo", "--version"), ("zstd", "--version"))

    def __init__(self, name: str, folder: Path, image: str) -> None:
        super().__init__(name, folder, ())
        self._image = image

    def takes(self, workload: Workload, state: State) -> bool:
        """Only what includes the start: from there on it is like the other."""
        return workload.is_start

    def prepare(self, state: State) -> None:
        """Forget what was pulled."""
        shutil.rmtree(self.folder / "pulled", ignore_errors=True)

    def start(self, state: State) -> None:
        """Pull, decompress, mount."""
        self.mount(decode_layers(self._image, self.folder / "pulled"))


class PullUnpack(Contender):
    """Pull all of the tar image and unpack it into a folder: what is done without us."""

    states = (State.COLD, State.DISK)
    ready = (State.DISK,)
    programs = (("skopeo", "--version"), ("umoci", "--version"))

    def __init__(self, name: str, folder: Path, image: str) -> None:
        super().__init__(name, folder)
        self._image = image
        self._layout = self.folder / "pulled"
        self._bundle = self.folder / "bundle"
        self.root = self._bundle / "rootfs"

    def takes(self, workload: Workload, state: State) -> bool:
        """From cold only what includes the start, for it takes long."""
        return workload.is_start or state is not State.COLD

    def prepare(self, state: State) -> None:
        """Remove the tree, or make it."""
        if state is State.COLD:
            shutil.rmtree(self._layout, ignore_errors=True)
            shutil.rmtree(self._bundle, ignore_errors=True)
        elif not self.root.exists():
            self.start(State.COLD)

    def start(self, state: State) -> None:
        """Pull and unpack; from the disk there is nothing to do."""
        if state is State.COLD:
            source = f"docker://{self._image}"
            target = f"oci:{self._layout}:tar"
            run("skopeo", "copy", "--quiet", "--src-tls-verify=false", source, target)
            run("umoci", "unpack", "--image", f"{self._layout}:tar", self._bundle)


class ErofsFuse(Contender):
    """``erofsfuse`` of erofs-utils, in C."""

    programs = (("erofsfuse", "--version"),)

    def __init__(self, name: str, folder: Path, image: Path) -> None:
        super().__init__(name, folder)
        self._image = image
        self._process: subprocess.Popen | None = None

    def start(self, state: State) -> None:
        """Mount it."""
        self._process = subprocess.Popen(
            ["erofsfuse", "-f", "-o", "ro", self._image, self.root],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(self.root.is_mount, "the mount of erofsfuse", STARTED_WITHIN_S)

    def stop(self) -> None:
        """Unmount it and end the process."""
        super().stop()
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pid(self) -> int | None:
        """The process that serves the mount."""
        return self._process.pid if self._process else None


def for_image(image: DebianImage, folder: Path) -> list[Contender]:
    """For an image in a registry; the first is the one that the others are compared with."""
    ours = image.seekable
    return [
        Lazyfs("lazyfs", folder, ours, remote=True),
        Lazyfs("lazyfs-fetch", folder, ours, remote=True, verify="fetch", reads_only=True),
        Lazyfs("lazyfs-off", folder, ours, remote=True, verify="off", reads_only=True),
        Lazyfs("kernel", folder, ours, remote=True, driver="kernel"),
        Lazyfs("kernel-fetch", folder, ours, remote=True, verify="fetch", driver="kernel"),
        KernelErofs("kernel-erofs", folder, image.layers),
        PullUnpack("pull-unpack", folder, image.tar),
        PullErofs("pull-erofs", folder, ours),
    ]


def for_file(file: Path, folder: Path) -> list[Contender]:
    """For a local EROFS image."""
    found: list[Contender] = [
        Lazyfs("lazyfs", folder, f"erofs:{file}", remote=False),
        KernelErofs("kernel-erofs", folder, [file]),
    ]
    if shutil.which("erofsfuse"):
        found.append(ErofsFuse("erofsfuse", folder, file))
    return found

"""Debian's containerd with our snapshotter, on folders of their own."""

import contextlib
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.lazy_mounts import PROGRAM
from tests.support.mounting import folder_of, kill_processes

COMMAND_WITHIN_S = 120
START_WITHIN_S = 120
END_WITHIN_S = 60
RECONNECT_WITHIN_S = 60

CONFIG = """
version = 2
root = "{folder}/c"
state = "{folder}/s"
disabled_plugins = [
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs",
]
[grpc]
  address = "{folder}/c.sock"
[proxy_plugins.lazyfs]
  type = "snapshot"
  address = "{folder}/s.sock"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "lazyfs"
  disable_snapshot_annotations = false
"""

STARTED = "serving snapshots", "containerd successfully booted"


@dataclass
class Process:
    """One that says when it has started, and whose log can be read."""

    words: list[str]
    log: Path
    sign: str
    environment: dict[str, str] = field(default_factory=dict)
    running: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Start it, and wait until it says that it has."""
        read, write = os.pipe()
        with os.fdopen(write, "wb") as end:
            self.running = subprocess.Popen(
                self.words,
                stdin=subprocess.DEVNULL,
                stdout=end,
                stderr=end,
                env={**os.environ, **self.environment},
            )
        started = threading.Event()
        threading.Thread(target=self._take, args=(read, started), daemon=True).start()
        assert started.wait(START_WITHIN_S), self.log.read_text()

    def _take(self, read: int, started: threading.Event) -> None:
        with os.fdopen(read, "rb") as lines, self.log.open("ab", buffering=0) as log:
            for line in lines:
                log.write(line)
                if self.sign.encode() in line:
                    started.set()

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it, and wait until it has."""
        if self.running is not None:
            self.running.send_signal(number)
            self.running.wait(END_WITHIN_S)
            self.running = None


@dataclass
class Rig:
    """containerd, and the snapshotter beside it."""

    folder: Path
    snapshotter: Process
    containerd: Process

    @property
    def root(self) -> Path:
        """The snapshotter's folder."""
        return self.folder / "root"

    @property
    def store(self) -> Path:
        """Where the store is mounted."""
        return self.root / "store"

    def ctr(self, *words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run ``ctr``."""
        done = subprocess.run(
            ["ctr", "--address", self.folder / "c.sock", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_WITHIN_S,
            check=False,
        )
        assert not check or done.returncode == 0, f"ctr {words}: {done.stdout}{done.stderr}"
        return done

    def diff(self, name: str) -> bytes:
        """What a container has changed, as the tar that containerd makes of it."""
        words = [
            "ctr",
            "--address",
            f"{self.folder}/c.sock",
            "snapshots",
            "--snapshotter",
            "lazyfs",
        ]
        done = subprocess.run(
            [*words, "diff", name], capture_output=True, timeout=COMMAND_WITHIN_S, check=True
        )
        return gzip.decompress(done.stdout)

    def pull(self, image: str, *options: str) -> dict:
        """``lazyfs ctr-pull``."""
        words = ["ctr-pull", "--json", "--containerd", str(self.folder / "c.sock"), *options, image]
        done = subprocess.run(
            [*PROGRAM, *words],
            capture_output=True,
            text=True,
            timeout=COMMAND_WITHIN_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert isinstance(result, dict)
        return result

    def run(self, image: str, name: str, *words: str) -> str:
        """Run a container to its end; what it says."""
        return self.ctr("run", "--rm", "--snapshotter", "lazyfs", image, name, *words).stdout

    def start(self, image: str, name: str) -> None:
        """Run one in the background that does nothing."""
        self.ctr(
            *("run", "--detach", "--snapshotter", "lazyfs", image, name, "/bin/sleep", "100000")
        )

    def exec(self, name: str, *words: str, check: bool = True) -> str:
        """Run a command in a container."""
        job = f"job-{os.urandom(4).hex()}"
        return self.ctr("task", "exec", "--exec-id", job, name, *words, check=check).stdout

    def stop(self, name: str) -> None:
        """End a container and remove it."""
        self.ctr("task", "rm", "--force", name)
        self.ctr("container", "rm", name)

    def restart_snapshotter(self) -> None:
        """Start the snapshotter again, and wait until containerd has found it.

        containerd may have looked for it while it was away, and then looks again only some
        seconds later; until then it refuses all requests itself.
        """
        self.snapshotter.start()
        deadline_s = time.monotonic() + RECONNECT_WITHIN_S
        words = ("snapshots", "--snapshotter", "lazyfs", "ls")
        while (done := self.ctr(*words, check=False)).returncode:
            assert "unavailable" in done.stderr, done.stderr
            assert time.monotonic() < deadline_s, done.stderr
            time.sleep(0.05)

    def snapshots(self) -> list[str]:
        """The names of all snapshots."""
        lines = self.ctr("snapshots", "--snapshotter", "lazyfs", "ls").stdout.splitlines()[1:]
        return [line.split()[0] for line in lines]

    def usage(self, name: str) -> int:
        """What containerd says that a snapshot takes, in bytes."""
        words = ("snapshots", "--snapshotter", "lazyfs", "usage", "-b", name)
        return int(self.ctr(*words).stdout.splitlines()[1].split()[1])

    def layer_mounts(self) -> list[str]:
        """Where lazy layers are mounted."""
        lines = Path("/proc/self/mounts").read_text().splitlines()
        fields = [line.split() for line in lines]
        return [
            place for _, place, kind, *_ in fields if kind == "erofs" and str(self.root) in place
        ]


@contextlib.contextmanager
def containerd_rig(*options: str) -> Iterator[Rig]:
    """Both of them; whatever happens, nothing of them is left."""
    folder = Path(tempfile.mkdtemp(prefix="lazyfs-ctd-", dir="/tmp"))  # sockets want short names
    (folder / "c.toml").write_text(CONFIG.format(folder=folder))
    words = [sys.executable, "-m", "lazyfs", "snapshotter", "--root", f"{folder}/root"]
    words += ["--address", f"{folder}/s.sock", "--cache-dir", f"{folder}/cache", *options]
    rig = Rig(
        folder,
        Process(words, folder / "snapshotter.log", STARTED[0]),
        Process(["containerd", "-c", f"{folder}/c.toml"], folder / "containerd.log", STARTED[1]),
    )
    try:
        rig.snapshotter.start()
        rig.containerd.start()
        yield rig
        _remove_containers(rig)
    finally:
        _end(rig)


def _remove_containers(rig: Rig) -> None:
    for name in rig.ctr("container", "ls", "-q").stdout.split():
        rig.ctr("task", "rm", "--force", name, check=False)
        rig.ctr("container", "rm", name, check=False)


def _end(rig: Rig) -> None:
    for name in rig.ctr("task", "ls", "-q", check=False).stdout.split():
        rig.ctr("task", "rm", "--force", name, check=False)
    rig.containerd.end()
    rig.snapshotter.end()
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        place = line.split()[1]
        if place.startswith(f"{rig.folder}/") and place != str(rig.store):
            subprocess.run(["umount", "--lazy", place], check=False, timeout=COMMAND_WITHIN_S)
    with contextlib.suppress(LookupError, StopIteration, ValueError, AssertionError):
        kill_processes(folder_of(rig.store))
    subprocess.run([*PROGRAM, "umount", "--lazy", rig.store], check=False, capture_output=True)
    shutil.rmtree(rig.folder, ignore_errors=True)

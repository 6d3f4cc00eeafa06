"""``lazyfs mount`` as a child that serves one mount: quick to start, its memory can be asked."""

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.mounting import COMMAND_WITHIN_S, ROOT, is_mounted

SERVED_WITHIN_S = 60
"""After this time the child is killed: whoever waits for it then gets an error."""


class RefusedError(Exception):
    """There was no mount; the message is what the command said."""


@dataclass
class Served:
    """A mount and its server."""

    path: Path
    process: "subprocess.Popen[str]"

    def is_alive(self) -> bool:
        """Whether the server runs and the kernel still has its mount."""
        return self.process.poll() is None and is_mounted(self.path)

    def peak_bytes(self) -> int:
        """The most memory that the server had at any time (with its helpers, each alone)."""
        pids = [self.process.pid]
        children = Path(f"/proc/{pids[0]}/task/{pids[0]}/children").read_text().split()
        peaks = []
        for pid in [*pids, *children]:
            found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
            assert found
            peaks.append(int(found[1]) * 1024)
        return max(peaks)


@contextlib.contextmanager
def served(image: str, directory: Path, *options: str | Path) -> Iterator[Served]:
    """Serve an image for the block; the server must end well after it.

    Raises:
        RefusedError: it ended before there was a mount.
    """
    directory.mkdir(exist_ok=True)
    command = [sys.executable, "-P", "-m", "lazyfs", "mount", "--foreground", *options]
    process = subprocess.Popen(
        [*command, image, directory],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.fspath(ROOT)},
    )
    watchdog = threading.Timer(SERVED_WITHIN_S, process.kill)
    watchdog.daemon = True
    watchdog.start()
    said: list[str] = []
    reader = None
    try:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if ": serving " in line:
                break
        else:
            process.wait(COMMAND_WITHIN_S)
            assert "Traceback" not in "".join(said), "".join(said)
            raise RefusedError("".join(said))
        # Somebody must go on reading, or the server stops when the pipe is full.
        reader = threading.Thread(target=said.extend, args=(process.stdout,), daemon=True)
        reader.start()
        yield Served(directory, process)
        assert process.poll() is None, "".join(said)
        process.terminate()
        status = process.wait(COMMAND_WITHIN_S)
        assert status == 0, f"status {status}: {''.join(said)}"
        reader.join()
        assert "Traceback" not in "".join(said), "".join(said)
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        if reader is not None:
            reader.join()
        if process.stdout is not None:
            process.stdout.close()
        if is_mounted(directory):
            subprocess.run(["umount", "--lazy", directory], check=False)

"""The daemon whose files are the lazy layers: ``lazyfs store``, started from here; blocking.

It is a process of its own with a supervisor of its own, so the snapshotter may end, crash and be
upgraded while containers run.
"""

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

from lazyfs.errors import MountError
from lazyfs.mount.census import census
from lazyfs.mount.options import MountOptions
from lazyfs.mount.runtime import KnownMount, known_mounts
from lazyfs.mount.unmount import unmount

START_WITHIN_S = 120.0

log = logging.getLogger(__name__)


class LayerStore:
    """The store on one directory."""

    def __init__(self, directory: Path, options: MountOptions) -> None:
        """Have its files in ``directory``."""
        self.directory = directory
        self._options = options
        self._lock = threading.Lock()

    def life(self) -> str:
        """Tells one mount of the store from the next; the store is started if it is not there.

        Raises:
            MountError: it cannot be.
        """
        with self._lock:
            found = self._mounted()
            if found is None:
                self._start()
                found = self._mounted()
            if found is None:
                raise MountError(f"the store on {self.directory} ended at once")
            return str(found.state.started_s)

    def status(self) -> dict[str, object]:
        """What ``lazyfs status`` shows of it.

        Raises:
            MountError: it is not there.
        """
        documents = census(os.fspath(self.directory))
        if not documents:
            raise MountError(f"no store is mounted on {self.directory}")
        return documents[-1]

    def _mounted(self) -> KnownMount | None:
        """The store, unless nobody serves it any more."""
        here = os.path.realpath(self.directory)
        for mount in known_mounts():
            if mount.state.mountpoint == here and mount.alive and mount.mounted:
                return mount
        return None

    def _start(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            unmount(os.fspath(self.directory), lazy=True)
            log.warning("the store on %s had died: starting another one", self.directory)
        except MountError:
            log.info("starting the store on %s", self.directory)
        words = [sys.executable, "-P", "-m", "lazyfs.snapshotter.startstore"]
        try:
            done = subprocess.run(  # noqa: S603 - our own program
                [*words, os.fspath(self.directory), self._options.to_json()],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=START_WITHIN_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise MountError(f"the store did not start within {START_WITHIN_S:g} s") from error
        if done.returncode != 0:
            raise MountError(f"the store does not start: {done.stderr.strip()[-1000:]}")

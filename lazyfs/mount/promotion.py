"""Local files in the place of ours under a mount of the kernel driver: then it needs no daemon.

The layers are on loop devices. A loop device that is only read can be given another file of the
same size while it is in use (``LOOP_CHANGE_FD``, made for installers that copy the disk they run
from), and nobody who reads through it notices. So each layer is copied, proven as it is read, to a
file without a name in the cache folder, which lives as long as its loop device. With the last one
nobody has a file of our FUSE mount open any more, and the kernel ends that.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import trio

from lazyfs.errors import LazyfsError, MountError
from lazyfs.interfaces import LayerReader
from lazyfs.mount.life import Life
from lazyfs.store.layers import LayerFiles

SWAPPER_COMMAND = (sys.executable, "-I", "-S", os.fspath(Path(__file__).with_name("swapper.py")))

COPY_BYTES = 1 << 20
TRY_AGAIN_S = 30.0

log = logging.getLogger(__name__)


class Promotion:
    """How far it has got."""

    def __init__(self, life: Life, files: LayerFiles) -> None:
        """Promote ``files``, once the kernel has mounted them."""
        self._life = life
        self._files = files
        self.done: set[str] = set()
        self.problem: str | None = None

    def as_document(self) -> dict[str, object]:
        """For the status."""
        return {
            "local": len(self.done),
            "files": len(self._files.readers),
            "problem": self.problem,
        }

    async def run(self, loops: Mapping[str, str]) -> None:
        """Copy and swap all layers; what fails is tried again until it works.

        Args:
            loops: the loop device on each file, by its name.
        """
        while len(self.done) < len(self._files.readers):
            for name, reader in self._files.readers.items():
                if name not in self.done:
                    await self._try(name, reader, loops[name])
            if self.problem is not None:
                await trio.sleep(TRY_AGAIN_S)

    async def _try(self, name: str, reader: LayerReader, device: str) -> None:
        try:
            file = await self._copy(reader)
            try:
                await self._swap(device, self._files.inode_of(name), file)
            finally:
                os.close(file)
        except (LazyfsError, OSError, subprocess.SubprocessError) as error:
            self.problem = f"{name}: {error}"
            log.warning("a layer stays with the daemon for now: %s", self.problem)
        else:
            self.done.add(name)
            self.problem = None

    async def _copy(self, reader: LayerReader) -> int:
        """A local file with the proven bytes of a layer; holes where there are zeros.

        Raises:
            LazyfsError: they cannot be had.
            OSError: they cannot be written.
        """
        cache = self._life.options.cache_dir
        file = os.open(cache, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(file, reader.size_bytes)
            for offset in range(0, reader.size_bytes, COPY_BYTES):
                length = min(COPY_BYTES, reader.size_bytes - offset)
                data = await reader.read_proven(offset, length)
                if data.strip(b"\0"):
                    await trio.to_thread.run_sync(_write_all, file, data, offset)
            await trio.to_thread.run_sync(os.fsync, file)
            return os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(file)

    async def _swap(self, device: str, inode: int, file: int) -> None:
        done = await trio.run_process(
            [*SWAPPER_COMMAND, device, str(inode), str(file)],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            pass_fds=(file,),
        )
        if done.returncode:
            raise MountError(f"{device}: {done.stderr.decode(errors='replace').strip()}")


def _write_all(file: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(file, rest, offset)
        rest, offset = rest[written:], offset + written

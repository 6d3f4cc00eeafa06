"""How many bytes the store holds, and the lock under which that may change.

The file ``usage`` is both: whoever holds its lock may add, rename and remove files, and the count
in it is what all of them charge. The record is marked dirty while it is held. A process killed
meanwhile leaves the mark, and the next holder counts the files anew; so does the first holder
after a reboot, for nothing here is synced to the disk. Otherwise the count is exact, and nobody
has to look at the files. NFS needs a file open for writing for such a lock, so it is not the
folder itself.
"""

import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from cache.locks import lock_within

USAGE_NAME: Final = "usage"
PATIENCE_S: Final = 10.0
"""How long to wait for other threads and processes; to scan a large store takes a second."""

_RECORD: Final = struct.Struct("<8s16sQQ")
_MAGIC: Final = b"lzfusage"
_CLEAN: Final = 0
_DIRTY: Final = 1
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_NO_BOOT_ID: Final = bytes(16)


class _Record(NamedTuple):
    """The content of the file ``usage``."""

    magic: bytes
    boot: bytes
    """The boot in which it was written, as from ``/proc/sys/kernel/random/boot_id``."""
    state: int
    used_bytes: int


@dataclass(slots=True)
class Account:
    """The bytes charged, for the holder of the lock to change as files come and go."""

    used_bytes: int


class Ledger:
    """The lock and the count of one open store; for any thread."""

    def __init__(self, root: int, count: Callable[[], int]) -> None:
        """Work in the folder open as ``root``; ``count`` counts anew what is charged."""
        self._root = root
        self._count = count
        self._threads = threading.Lock()
        self._boot = _boot_id()
        self._boot_checked = False

    @contextmanager
    def locked(self) -> Iterator[Account]:
        """Be the only one, of all threads and processes, to add or remove files of the store.

        Errors raised inside are let through; the account must be right whatever happens inside.

        Raises:
            TimeoutError: others held the lock for ``PATIENCE_S`` seconds.
            OSError: the disk failed.
        """
        if not self._threads.acquire(timeout=PATIENCE_S):
            raise TimeoutError(f"another thread held the store for {PATIENCE_S:g} s")
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(USAGE_NAME, flags, 0o600, dir_fd=self._root)
            try:
                lock_within(descriptor, PATIENCE_S)
                account = self._begin(descriptor)
                try:
                    yield account
                finally:
                    self._write(descriptor, _CLEAN, account.used_bytes)
            finally:
                os.close(descriptor)
        finally:
            self._threads.release()

    def used_bytes(self) -> int:
        """The bytes charged, as last written; 0 if that cannot be told."""
        try:
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(USAGE_NAME, flags, dir_fd=self._root)
        except OSError:
            return 0
        try:
            record = _read(descriptor)
        except OSError:
            return 0
        finally:
            os.close(descriptor)
        return 0 if record is None else record.used_bytes

    def _begin(self, descriptor: int) -> Account:
        """Mark the record dirty; its count, or a new one if it cannot be trusted."""
        record = _read(descriptor)
        if record is None or record.state != _CLEAN or not self._is_this_boot(record):
            used_bytes = self._count()
        else:
            used_bytes = record.used_bytes
        self._write(descriptor, _DIRTY, used_bytes)
        self._boot_checked = True
        return Account(used_bytes)

    def _is_this_boot(self, record: _Record) -> bool:
        """Asked once only: on a network disk, two machines would count for each other for ever."""
        return self._boot_checked or record.boot == self._boot != _NO_BOOT_ID

    def _write(self, descriptor: int, state: int, used_bytes: int) -> None:
        # Never negative, even if somebody else put files there that nobody was charged for.
        record = _Record(_MAGIC, self._boot, state, max(0, used_bytes))
        os.pwrite(descriptor, _RECORD.pack(*record), 0)


def _read(descriptor: int) -> _Record | None:
    """The record, or None if there is none that makes sense."""
    data = os.pread(descriptor, _RECORD.size, 0)
    if len(data) != _RECORD.size:
        return None
    record = _Record(*_RECORD.unpack(data))
    return record if record.magic == _MAGIC else None


def _boot_id() -> bytes:
    try:
        return bytes.fromhex(_BOOT_ID.read_text(encoding="ascii").strip().replace("-", ""))
    except (OSError, ValueError):
        return _NO_BOOT_ID

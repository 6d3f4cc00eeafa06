"""The chunk files of a store: reading, writing, removing and counting them. Blocks; any thread.

A chunk is a plain file that appears by ``rename`` when it is whole. Nothing is synced: after a
power cut a chunk may be short, which a read notices, or hold zeros, which the reader's own
verification notices.

Names come and go only under the ledger's lock; data is written outside it. A chunk being written
is a file in ``tmp/`` whose name tells what was charged for it and which its writer keeps locked;
unlocked, its writer died, and whoever scans next removes it. Reading takes no lock of the store:
a reader opens the file and shares a lock on it, for which the evictor passes it over; if the
evictor was quicker, the reader still reads the removed file.

Last use is the file's modification time, stamped at most once a minute; between stamps a process
remembers its own uses, so that what it evicts is exactly what it used last.
"""

import itertools
import os
import secrets
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from cache.counters import StoreCounters
from cache.errors import (
    CacheError,
    CacheOpenError,
    CacheWriteError,
    ChunkTooLargeError,
    StoreFullError,
)
from cache.eviction import StoredChunk, charged_bytes, evict, eviction_target_bytes
from cache.folder import (
    CHUNKS_NAME,
    LOCKS_NAME,
    TEMPORARY_NAME,
    is_at_hand,
    make_folder,
    open_folder,
    write_all,
)
from cache.freespace import NO_MARK, FreeSpace, MinFree
from cache.ledger import Account, Ledger
from cache.locks import LockFile, try_lock
from cache.pace import AT_HAND_S, IN_PLACE_BYTES, DiskPace
from cache.recency import RecentUses
from cache.store import StoreStatistics

STAMP_INTERVAL_NS: Final = 60 * 1_000_000_000
REMOVED_AT_ONCE: Final = 256
"""Chunks removed under the lock of the store before others may have it."""

MAX_UNREADABLE: Final = 4096
"""Chunks on bad blocks that are remembered, so that the next ``put`` replaces them."""

_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_READ_CHUNK: Final = _READ | os.O_NOATIME
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class ChunkFiles:
    """One open store folder. Names are paths below ``chunks/``, made by ``ChunkKey``."""

    def __init__(
        self, root: int, path: Path, limit_bytes: int | None, min_free: MinFree = NO_MARK
    ) -> None:
        """Take over the descriptor ``root``; use ``ChunkFiles.open``."""
        self.locks_path = path.absolute() / LOCKS_NAME  # a daemon changes its folder
        self._root = root
        self._limit_bytes = limit_bytes
        self._free = FreeSpace(root, min_free)
        self._ledger = Ledger(root, self._count)
        self._uses = RecentUses()
        self._pace = DiskPace()
        self._unreadable: set[str] = set()
        self._counters = StoreCounters()
        self._counting = threading.Lock()

    @classmethod
    def open(cls, path: Path, limit_bytes: int | None, min_free: MinFree = NO_MARK) -> "ChunkFiles":
        """Open the store in ``path``, clean up after killed processes and keep to the limit.

        Args:
            path: of the folder.
            limit_bytes: what it may hold; None: no limit.
            min_free: what its disk should keep free.

        Raises:
            CacheOpenError: the folder cannot serve as a store, or the disk failed.
        """
        files = cls(open_folder(path), path, limit_bytes, min_free)
        try:
            with files._ledger.locked() as account:
                files._sweep_temporary(account)
                files._make_room(account, 0)
            files._sweep_locks()
        except OSError as error:
            files.close()
            raise CacheOpenError(f"cache folder {path}: {error}") from error
        return files

    def close(self) -> None:
        """Let go of the folder; nothing may be in progress. A second call does nothing."""
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def read(
        self, name: str, offset: int, length: int, *, wait: bool = True, missed: bool = False
    ) -> bytes | None:
        """Exactly ``length`` bytes at ``offset``, or None: absent, shorter or unreadable.

        Args:
            name: of the chunk.
            offset: in it.
            length: likewise.
            wait: whether the disk may be waited for.
            missed: whether the bytes were not at hand a moment ago.

        Raises:
            BlockingIOError: the disk would have to be waited for, and not ``wait``.
        """
        data = None
        try:
            descriptor = os.open(f"{CHUNKS_NAME}/{name}", _READ_CHUNK, dir_fd=self._root)
            try:
                try_lock(descriptor, shared=True)  # if not: it is being evicted, yet readable
                found = os.fstat(descriptor)
                if offset + length <= found.st_size:  # else a huge length would be allocated
                    data = self._pread(descriptor, offset, length, wait=wait, missed=missed)
                    self._note_use(name, descriptor, found.st_mtime_ns)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            pass
        except BlockingIOError:
            raise
        except OSError:
            self._note_unreadable(name)
        with self._counting:
            if data is None or len(data) != length:
                self._counters.misses += 1
                return None
            self._counters.hits += 1
            self._counters.bytes_read += length
        return data

    def read_all(
        self, wanted: Sequence[tuple[str, int, int]], *, missed: bool
    ) -> list[bytes | None]:
        """As ``read`` for each of several ranges; the disk is asked for all of them first."""
        for name, offset, length in wanted:
            if length > IN_PLACE_BYTES:
                self._ask_for(name, offset, length)
        return [self.read(*where, missed=missed) for where in wanted]

    def _ask_for(self, name: str, offset: int, length: int) -> None:
        """Have the kernel begin to read a part of a chunk."""
        with suppress(OSError):  # whoever reads it will see
            descriptor = os.open(f"{CHUNKS_NAME}/{name}", _READ_CHUNK, dir_fd=self._root)
            try:
                os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)

    def contains(self, name: str) -> bool:
        """Whether there is a file of that name that is not empty."""
        try:
            return self._size(f"{CHUNKS_NAME}/{name}") > 0
        except OSError:
            self._add(errors=1)
            return False

    def size(self, name: str) -> int:
        """Length of a chunk in bytes; 0 if it is not there.

        Raises:
            OSError: the disk failed.
        """
        return self._size(f"{CHUNKS_NAME}/{name}")

    def put(self, name: str, data: bytes) -> None:
        """Store a chunk whole or not at all.

        A file of the same name and size is left alone, one of another size is replaced (torn by a
        power cut). An empty chunk is not stored: an empty file is what a power cut leaves.

        Raises:
            CacheWriteError.
        """
        charge = charged_bytes(len(data))
        target = f"{CHUNKS_NAME}/{name}"
        with self._write_errors(f"cannot store chunk {name}"):
            if self._limit_bytes is not None and charge > self._limit_bytes:
                raise ChunkTooLargeError(
                    f"chunk {name} has {len(data)} bytes, the store may hold {self._limit_bytes}"
                )
            if not data or self._is_stored(name, len(data)):
                return
            temporary = f"{TEMPORARY_NAME}/{secrets.token_hex(12)}.{charge}"
            descriptor = -1
            try:
                with self._ledger.locked() as account:
                    self._make_room(account, charge)
                    descriptor = os.open(temporary, _CREATE, 0o600, dir_fd=self._root)
                    account.used_bytes += charge
                    try_lock(descriptor)  # nobody else can know it
                write_all(descriptor, data)
                _stamp(descriptor)
                with self._ledger.locked() as account:
                    if self._is_stored(name, len(data)):
                        # Another writer was quicker, and that file may be in use by now.
                        os.unlink(temporary, dir_fd=self._root)
                        account.used_bytes -= charge
                    else:
                        self._rename(temporary, target, account)
            except BaseException:
                if descriptor >= 0:
                    # Unlocked and still named, it is what a killed writer leaves behind.
                    os.close(descriptor)
                    with self._ledger.locked() as account:
                        self._sweep_temporary(account)
                raise
            os.close(descriptor)
        self._unreadable.discard(name)
        self._add(puts=1, bytes_written=len(data))

    def discard(self, name: str) -> None:
        """Remove a chunk, if it is there.

        Raises:
            CacheWriteError: it may still be there.
        """
        target = f"{CHUNKS_NAME}/{name}"
        with self._write_errors(f"cannot remove chunk {name}"), self._ledger.locked() as account:
            size = self._size(target)
            try:
                os.unlink(target, dir_fd=self._root)
            except FileNotFoundError:
                return
            account.used_bytes -= charged_bytes(size)
        self._add(discards=1)

    def relieve(self) -> None:
        """Give back what the disk needs, if it has less free than it should.

        Raises:
            CacheWriteError: the disk failed.
        """
        with self._write_errors("cannot make room"):
            if self._free.is_short():
                with self._ledger.locked() as account:
                    self._make_room(account, 0)

    def chunks(self) -> list[StoredChunk]:
        """All chunks at about this moment, for others may add and remove some meanwhile.

        Raises:
            OSError: the disk failed.
        """
        return list(self._scan())

    def shrink(self, limit_bytes: int) -> None:
        """Evict, this once, until no more than ``limit_bytes`` are charged or all is in use.

        Raises:
            CacheWriteError: the disk failed.
        """
        with self._write_errors("cannot make room"), self._ledger.locked() as account:
            chunks = self._take_stock(account)
            self._evict(account, chunks, account.used_bytes - limit_bytes)

    def remove(self, names: Iterable[str]) -> None:
        """Remove chunks, except those that are being read just now.

        Raises:
            CacheWriteError: the disk failed.
        """
        rest = iter(names)
        while batch := list(itertools.islice(rest, REMOVED_AT_ONCE)):
            with self._write_errors("cannot remove chunks"), self._ledger.locked() as account:
                chunks = [
                    StoredChunk(name, charged_bytes(self._size(f"{CHUNKS_NAME}/{name}")), 0)
                    for name in batch
                ]
                self._evict(account, chunks, sum(chunk.charged_bytes for chunk in chunks))

    def statistics(self) -> StoreStatistics:
        """Counters since the store was opened."""
        return self._counters.snapshot()

    def usage_bytes(self) -> int:
        """What is charged against the limit now, by all processes."""
        return self._ledger.used_bytes()

    # Reading and counting

    def _pread(
        self, descriptor: int, offset: int, length: int, *, wait: bool, missed: bool
    ) -> bytes:
        """From a quick disk all at once: who looks first has the kernel read page by page."""
        if (
            not wait
            and not self._pace.may_wait(length)
            and not is_at_hand(descriptor, offset, length)
        ):
            raise BlockingIOError
        began_s = time.monotonic()
        data = os.pread(descriptor, length, offset)
        took_s = time.monotonic() - began_s
        if missed or took_s > AT_HAND_S:
            self._pace.note(length, took_s)
        return data

    def _note_use(self, name: str, descriptor: int, stamp_ns: int) -> None:
        now_ns = time.time_ns()
        self._uses.note(name, now_ns)
        if not 0 <= now_ns - stamp_ns < STAMP_INTERVAL_NS:
            try:
                _stamp(descriptor)
            except OSError:  # a read-only disk, perhaps: the chunk is good all the same
                self._add(errors=1)

    def _note_unreadable(self, name: str) -> None:
        """A file that cannot be read is to be replaced, although its size may be right."""
        self._add(errors=1)
        if len(self._unreadable) < MAX_UNREADABLE:
            self._unreadable.add(name)

    def _size(self, path: str) -> int:
        """Size of a file in bytes; 0 if there is none, or something else of that name."""
        try:
            found = os.stat(path, dir_fd=self._root, follow_symlinks=False)
        except FileNotFoundError:
            return 0
        return found.st_size if stat.S_ISREG(found.st_mode) else 0

    def _is_stored(self, name: str, size_bytes: int) -> bool:
        return self._size(f"{CHUNKS_NAME}/{name}") == size_bytes and name not in self._unreadable

    def _add(self, **increments: int) -> None:
        """Count what may happen in any thread."""
        with self._counting:
            for name, increment in increments.items():
                setattr(self._counters, name, getattr(self._counters, name) + increment)

    @contextmanager
    def _write_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._add(errors=1)
            raise CacheWriteError(f"{what}: {error}") from error
        except CacheError:
            self._add(errors=1)
            raise

    # Under the ledger's lock

    def _count(self) -> int:
        """What all files are charged, found by looking at each."""
        account = Account(0)
        self._take_stock(account)
        return account.used_bytes

    def _take_stock(self, account: Account) -> list[StoredChunk]:
        """Count the files anew; the chunks among them."""
        self._sweep_temporary(account)
        chunks = list(self._scan())
        writing = sum(_charge_in_name(name) for name in self._names(TEMPORARY_NAME))
        account.used_bytes = writing + sum(chunk.charged_bytes for chunk in chunks)
        return chunks

    def _make_room(self, account: Account, charge: int) -> None:
        """Evict until ``charge`` more bytes keep to the limit.

        Raises:
            StoreFullError: what is left is in use or being written.
        """
        allowed_bytes = self._free.allowed_bytes(account.used_bytes, charge)
        limits = [limit for limit in (self._limit_bytes, allowed_bytes) if limit is not None]
        if not limits or account.used_bytes + charge <= min(limits):
            return
        limit_bytes = min(limits)
        chunks = self._take_stock(account)
        target = eviction_target_bytes(limit_bytes, charge, len(chunks))
        self._evict(account, chunks, account.used_bytes - target)
        if charge and account.used_bytes + charge > limit_bytes:
            if limit_bytes != self._limit_bytes:
                raise StoreFullError("its disk has less free than is to stay free")
            raise StoreFullError(
                f"the store holds {account.used_bytes} of {limit_bytes} bytes, all in use"
            )

    def _evict(self, account: Account, chunks: list[StoredChunk], excess_bytes: int) -> None:
        """Remove chunks that are not in use, oldest first, until so much is freed."""

        def remove(chunk: StoredChunk) -> bool:
            if not self._remove_unused(f"{CHUNKS_NAME}/{chunk.name}"):
                return False
            account.used_bytes -= chunk.charged_bytes
            self._add(evictions=1, bytes_evicted=chunk.charged_bytes)
            return True

        evict(chunks, excess_bytes, remove)

    def _rename(self, temporary: str, target: str, account: Account) -> None:
        """Give a whole chunk its name; what it replaces is not charged any more."""
        replaced = self._size(target)
        try:
            os.rename(temporary, target, src_dir_fd=self._root, dst_dir_fd=self._root)
        except FileNotFoundError:
            parts = target.split("/")[:-1]
            for end in range(1, len(parts) + 1):
                make_folder("/".join(parts[:end]), self._root)
            os.rename(temporary, target, src_dir_fd=self._root, dst_dir_fd=self._root)
        account.used_bytes -= charged_bytes(replaced)

    def _scan(self) -> Iterator[StoredChunk]:
        """Every chunk file, by algorithm and first digits."""
        for algorithm in self._names(CHUNKS_NAME):
            for digits in self._names(f"{CHUNKS_NAME}/{algorithm}"):
                yield from self._scan_folder(f"{algorithm}/{digits}")

    def _scan_folder(self, folder: str) -> Iterator[StoredChunk]:
        descriptor = os.open(f"{CHUNKS_NAME}/{folder}", _READ | os.O_DIRECTORY, dir_fd=self._root)
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    try:
                        found = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:  # evicted meanwhile; not so under the lock
                        continue
                    if not stat.S_ISREG(found.st_mode):
                        continue
                    name = f"{folder}/{entry.name}"
                    last_use_ns = max(found.st_mtime_ns, self._uses.last_use_ns(name))
                    yield StoredChunk(name, charged_bytes(found.st_size), last_use_ns)
        finally:
            os.close(descriptor)

    def _names(self, folder: str) -> list[str]:
        descriptor = os.open(folder, _READ | os.O_DIRECTORY, dir_fd=self._root)
        try:
            with os.scandir(descriptor) as entries:
                return [entry.name for entry in entries]
        finally:
            os.close(descriptor)

    def _remove_unused(self, path: str) -> bool:
        """Remove a file unless somebody has it locked; whether it is gone."""
        try:
            descriptor = os.open(path, _READ, dir_fd=self._root)
        except FileNotFoundError:  # somebody tidies up by hand
            return True
        try:
            if not try_lock(descriptor):
                return False
            os.unlink(path, dir_fd=self._root)
        finally:
            os.close(descriptor)
        return True

    def _sweep_temporary(self, account: Account) -> None:
        """Remove what killed writers left in ``tmp/``."""
        for name in self._names(TEMPORARY_NAME):
            if self._remove_unused(f"{TEMPORARY_NAME}/{name}"):
                account.used_bytes -= _charge_in_name(name)

    def _sweep_locks(self) -> None:
        """Remove the lock files of killed fetchers; those that are held stay."""
        for name in self._names(LOCKS_NAME):
            with suppress(OSError):
                lock = LockFile.acquire(self.locks_path / name)
                if lock is not None:
                    lock.release()


def _charge_in_name(name: str) -> int:
    """What a file in ``tmp/`` was charged; 0 if it is none of ours."""
    digits = name.rpartition(".")[2]
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 15 else 0


def _stamp(descriptor: int) -> None:
    """Note on the disk that a chunk was used now; finer than the kernel's own clock ticks."""
    now_ns = time.time_ns()
    os.utime(descriptor, ns=(now_ns, now_ns))

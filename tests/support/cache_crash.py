"""Kills, or fails, a process at every system call that a store makes: ``cache_crash FOLDER MODE``.

For n = 1, 2, ... a forked child works on a fresh store in FOLDER and is stopped at the n-th call:

    kill    SIGKILL before the call is made
    tear    SIGKILL when half of the bytes are written (other calls: not at all)
    fail    the call fails with EIO, and the child goes on

After each child the store is opened as the next process would, and must be as promised. Prints
the number of calls tried; any broken promise is a traceback and exit status 1.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from cache.chunkfiles import ChunkFiles
from cache.documents import DocumentFolder
from cache.errors import CacheError
from cache.flights import Flights
from cache.freespace import NO_MARK, MinFree
from tests.support.cache_chunks import BLOCK, charged_on_disk, chunk_data, chunk_key, chunk_path

LIMIT = 4 * BLOCK
NUMBERS = range(1, 8)
MAX_CALLS = 2000
DOCUMENTS = [("first", b"one" * 2000), ("first", b"two" * 1000), ("second", b"three" * 1000)]
CALLS = [
    "open",
    "close",
    "write",
    "pwrite",
    "pread",
    "rename",
    "unlink",
    "mkdir",
    "fchmod",
    "fstat",
]
LISTDIR = os.listdir
CALLS += ["fsync", "utime", "scandir", "stat", "fstatvfs", "listdir"]


class Stopper:
    """Counts the calls and stops the process at one of them."""

    def __init__(self, mode: str, stop_at: int) -> None:
        self.mode = mode
        self.stop_at = stop_at
        self.calls = 0

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == self.stop_at:
                if self.mode == "fail" and name != "close":  # a failed close has closed
                    raise OSError(errno.EIO, "injected")
                if self.mode == "tear" and name == "write":
                    call(args[0], bytes(args[1])[: len(args[1]) // 2])
                if self.mode in ("kill", "tear"):
                    os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)

        return counted

    def install(self) -> None:
        os.fsync = lambda fd: None  # no power cut is tried, and it may take long
        for name in CALLS:
            setattr(os, name, self.wrap(name, getattr(os, name)))
        fcntl.flock = self.wrap("flock", fcntl.flock)


def work(store: Path, tolerant: bool) -> None:
    """Everything that changes a store: making it, storing, evicting, healing, removing."""
    accepted = (CacheError, FileNotFoundError) if tolerant else ()
    with contextlib.suppress(*accepted):
        files = ChunkFiles.open(store, LIMIT)
        steps: list[Callable[[], object]] = []
        for number in NUMBERS:
            name, data = chunk_key(number).relative_path, chunk_data(number, blocks=number % 3 + 1)
            steps.append(lambda name=name, data=data: files.put(name, data))  # type: ignore[misc]
            if number == 3:
                steps.append(lambda: os.truncate(chunk_path(store, 3), 5))
                steps.append(lambda name=name, data=data: files.put(name, data))  # type: ignore[misc]
        steps.append(lambda: files.discard(chunk_key(7).relative_path))
        steps.append(lambda: files.remove([chunk_key(5).relative_path]))
        steps.append(lambda: files.shrink(BLOCK))
        steps.append(lambda: relieve(store))
        steps.append(lambda: keep_documents(store))
        steps.append(lambda: trio.run(fetch, store))
        for step in steps:
            with contextlib.suppress(*accepted):
                step()
        files.close()


def relieve(store: Path) -> None:
    """Evict because the disk is said to have nothing left."""
    files = ChunkFiles.open(store, LIMIT, NO_MARK)
    try:
        name, data = chunk_key(8).relative_path, chunk_data(8, blocks=8 % 3 + 1)
        files.put(name, data)
        files._free._min_free = MinFree(1 << 62)
        files.relieve()
        files.shrink(0)
    finally:
        files.close()


def keep_documents(store: Path) -> None:
    """Write a document, replace it, write another one, and remove the older one."""
    with DocumentFolder.open(store, "documents") as documents:
        for name, content in DOCUMENTS:
            documents.write(name, content)
        documents.trim(len(DOCUMENTS[-1][1]) + 100)


async def fetch(store: Path) -> None:
    flight = Flights(store / "locks").claim(chunk_key(1))
    if flight is None:
        raise AssertionError("nobody else fetches this chunk")
    with flight:
        pass


def check(store: Path) -> None:
    """What a killed process left, seen before and after the next one opens the store."""
    if (store / "chunks").exists():
        assert charged_on_disk(store) <= LIMIT, "the limit was passed"
        check_whole(store)
    files = ChunkFiles.open(store, LIMIT)
    try:
        assert list((store / "tmp").iterdir()) == [], "temporary files are left"
        assert list((store / "locks").iterdir()) == [], "lock files are left"
        assert files.usage_bytes() == charged_on_disk(store), "the count is wrong"
        check_whole(store)
        check_documents(store)
        name, data = chunk_key(9).relative_path, chunk_data(9, blocks=4)
        files.put(name, data)
        assert files.read(name, 0, len(data)) == data
        assert files.usage_bytes() == charged_on_disk(store) == LIMIT
    finally:
        files.close()


def check_documents(store: Path) -> None:
    """Each document is one of those that were written, and what is half written goes in time."""
    with DocumentFolder.open(store, "documents") as documents:
        for name in {name for name, _ in DOCUMENTS}:
            found = documents.read(name)
            assert found is None or (name, found) in DOCUMENTS, "a torn document"
        for left in (store / "documents").iterdir():
            os.utime(left, (1, 1))
        documents.trim(1 << 20)
        names = {found.name for found in (store / "documents").iterdir()}
        assert names <= {name for name, _ in DOCUMENTS}, "a half written document is left"


def check_whole(store: Path) -> None:
    for number in (*NUMBERS, 8):
        path = chunk_path(store, number)
        if path.exists() and path.stat().st_size != 5:  # the one that the work itself tears
            assert path.read_bytes() == chunk_data(number, blocks=number % 3 + 1), "a torn chunk"


def stop_one(store: Path, mode: str, stop_at: int) -> bool:
    """Run a child that stops at one call; whether it came that far."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            stopper = Stopper(mode, stop_at)
            descriptors = len(LISTDIR("/proc/self/fd"))
            stopper.install()
            work(store, tolerant=mode == "fail")
            leaked = len(LISTDIR("/proc/self/fd")) - descriptors
            if leaked:
                raise AssertionError(f"{leaked} descriptors are left open")
            status = 0 if stopper.calls < stop_at else 2
        except Exception:  # noqa: BLE001 - the child ends below, without a word
            traceback.print_exc()
        finally:
            os._exit(status)
    _, waited = os.waitpid(child, 0)
    if os.WIFSIGNALED(waited):
        assert os.WTERMSIG(waited) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(waited) in (0, 2), f"stopped at call {stop_at}, the child failed"
    return os.WEXITSTATUS(waited) == 2


def main(folder: str, mode: str) -> None:
    store = Path(folder) / "store"
    for stop_at in range(1, MAX_CALLS):
        stopped = stop_one(store, mode, stop_at)
        try:
            check(store)
        except BaseException:
            print(f"stopped at call {stop_at}", file=sys.stderr)  # noqa: T201
            raise
        if not stopped:
            print(stop_at)  # noqa: T201
            return
        shutil.rmtree(store)
    raise AssertionError("the work never ends")


if __name__ == "__main__":
    main(*sys.argv[1:])

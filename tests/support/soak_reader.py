"""Many threads that read parts of files at random and compare them with the originals.

    soak_reader.py MOUNT SOURCE STOP THREADS SEED

Each read asks the file system and not the page cache (as far as no other reader holds the pages).
When the file STOP appears the threads end, and what they saw is printed as one JSON object
(``Seen``). Times are of the monotonic clock, which all processes share.
"""

import errno
import json
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

LENGTHS = (1, 4096, 4096, 65536, 65536, 262144, 1 << 20)
CALL_BYTES = 128 << 10
"""What one system call asks for, as with ``cat``: the kernel makes one request of it, or two."""
SLOW_S = 3.0
AFTER_ERROR_S = 0.05
LOOK_EVERY_S = 0.1
STUCK_S = 120.0
"""A thread that has not ended so long after it was told to is stuck."""


@dataclass
class Seen:
    """What readers saw; times in seconds."""

    reads: int = 0
    read_bytes: int = 0
    wrong: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    recovered: int = 0
    """Files that could be read again after an error."""
    slow: list[tuple[float, float, str]] = field(default_factory=list)
    """Begin, end and outcome of system calls that took longer than ``SLOW_S``."""
    stuck: int = 0
    longest_s: float = 0.0


class Reader(threading.Thread):
    """One reader."""

    def __init__(self, mount: Path, source: Path, names: list[str], stop: Path, seed: str) -> None:
        super().__init__(daemon=True)
        self.seen = Seen()
        self._mount, self._source, self._names, self._until = mount, source, names, stop
        self._chance = random.Random(seed)
        self._failed: set[str] = set()

    def run(self) -> None:
        while not self._until.exists():
            # What failed is tried again first.
            name = next(iter(self._failed), None) or self._chance.choice(self._names)
            try:
                self._compare(name)
            except OSError as error:
                self.seen.errors[_name(error)] += 1
                self._failed.add(name)
                time.sleep(AFTER_ERROR_S)

    def _compare(self, name: str) -> None:
        with (self._source / name).open("rb", buffering=0) as original:
            size = os.fstat(original.fileno()).st_size
            offset = self._chance.randrange(size + 1)
            length = self._chance.choice(LENGTHS)
            wanted = os.pread(original.fileno(), length, offset)
        file = self._timed(os.open, self._mount / name, os.O_RDONLY)
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            found = 0
            while True:
                # Short where an error comes behind, which the next call meets; and at the end.
                data = self._timed(os.pread, file, min(CALL_BYTES, length - found), offset + found)
                if data != wanted[found : found + len(data)] or (not data and found < len(wanted)):
                    self.seen.wrong.append(f"{name}: {len(data)} bytes at {offset + found}")
                    return
                found += len(data)
                if found == len(wanted):
                    break
        finally:
            os.close(file)
        self.seen.reads += 1
        self.seen.read_bytes += found
        if name in self._failed:
            self._failed.discard(name)
            self.seen.recovered += 1

    def _timed(self, call: Callable[..., T], *words: object) -> T:
        """Make a system call that may wait, and note how long it took."""
        began_s = time.monotonic()
        outcome = "ok"
        try:
            return call(*words)
        except OSError as error:
            outcome = _name(error)
            raise
        finally:
            ended_s = time.monotonic()
            self.seen.longest_s = max(self.seen.longest_s, ended_s - began_s)
            if ended_s - began_s > SLOW_S:
                self.seen.slow.append((began_s, ended_s, outcome))


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error.errno))


def together(parts: list[Seen]) -> Seen:
    """The sum of what several saw."""
    total = Seen()
    for part in parts:
        total.reads += part.reads
        total.read_bytes += part.read_bytes
        total.wrong += part.wrong
        total.errors.update(part.errors)
        total.recovered += part.recovered
        total.slow += part.slow
        total.stuck += part.stuck
        total.longest_s = max(total.longest_s, part.longest_s)
    return total


def main() -> int:
    mount, source, stop = (Path(word) for word in sys.argv[1:4])
    threads, seed = int(sys.argv[4]), sys.argv[5]
    names = sorted(
        os.fspath(path.relative_to(source)) for path in source.rglob("*") if path.is_file()
    )
    readers = [Reader(mount, source, names, stop, f"{seed}.{number}") for number in range(threads)]
    for reader in readers:
        reader.start()
    while not stop.exists():
        time.sleep(LOOK_EVERY_S)
    ends_s = time.monotonic() + STUCK_S
    for reader in readers:
        reader.join(max(0.0, ends_s - time.monotonic()))
    total = together([reader.seen for reader in readers])
    total.stuck = sum(reader.is_alive() for reader in readers)
    sys.stdout.write(json.dumps(vars(total)))
    sys.stdout.flush()
    os._exit(0)  # threads that are stuck must not keep what was seen back


if __name__ == "__main__":
    sys.exit(main())

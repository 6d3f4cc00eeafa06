"""One fetch for a chunk, however many want it, in this process and in others.

    while (data := store.read(key, 0, size)) is None:
        flight = flights.claim(key)
        if flight is None:
            if (data := await flights.wait(key)) is not None:
                return data
            continue
        with flight:
            data = store.read(key, 0, size)     # another process may have been quicker
            if data is None:
                data = await fetch(key)         # flight.fail() passes an error on to those waiting
                flight.land(data)               # those who wait in this process go on now ...
                await store.put(key, data)      # ... those in others when the flight ends
        return data
    return data

Between two checkpoints a task is alone; ``claim`` and the end of a flight rely on that, so neither
may ever await. Other processes are kept out by a lock file for each chunk that is being fetched,
which the kernel unlocks when its holder dies. Where lock files cannot be had (a full or read-only
disk) each process fetches for itself.
"""

from pathlib import Path
from types import TracebackType
from typing import Final, Self

import trio

from cache.key import ChunkKey
from cache.locks import LockFile, is_locked

_FIRST_PAUSE_S: Final = 0.001
_LONGEST_PAUSE_S: Final = 0.05

MAX_LOCK_FILES: Final = 256
"""Lock files that one ``Flights`` holds at once, for each is an open descriptor.

What is claimed beyond that (by a long read-ahead) is not fetched if another process fetches it
already, but another process may begin to.
"""


class Flight:
    """The right, and the duty, to fetch one chunk; a context manager that ends it.

    Left without ``land`` or ``fail`` (so also when cancelled), the chunk is free again and those
    who waited are woken, of whom the first to claim it fetches it.
    """

    def __init__(self, flights: "Flights", key: ChunkKey, lock: LockFile | None) -> None:
        """Made by ``Flights.claim`` only."""
        self._flights = flights
        self._key = key
        self._lock = lock
        self._outcome: bytes | Exception | None = None
        self._done = trio.Event()

    def land(self, data: bytes) -> None:
        """Give the whole, verified chunk to those who wait in this process, at once.

        Until the flight ends, those who ask for it get it too. The first ``land`` or ``fail``
        counts, later ones change nothing.
        """
        self._settle(data)

    def fail(self, error: Exception) -> None:
        """Have ``error`` raised in those who wait in this process, at once; as for ``land``."""
        self._settle(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._flights.end(self._key, self._lock)
        self._done.set()

    async def outcome(self) -> bytes | None:
        """What ``land`` was given; None if the flight ended without.

        Raises:
            What ``fail`` was given.

        Cancelled: the flight goes on.
        """
        await self._done.wait()
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def _settle(self, outcome: bytes | Exception) -> None:
        if not self._done.is_set():
            self._outcome = outcome
            self._done.set()


class Flights:
    """The chunks that are being fetched now."""

    def __init__(self, directory: Path | None) -> None:
        """Share lock files in ``directory`` with other processes; None: this process only."""
        self._directory = directory
        self._flying: dict[ChunkKey, Flight] = {}
        self._locks_held = 0
        self.lock_failures = 0
        """How often a lock file could not be had, so that another process may fetch the same."""

    def share(self, directory: Path | None) -> None:
        """From now on share lock files in ``directory``; None: this process only."""
        self._directory = directory

    def claim(self, key: ChunkKey) -> Flight | None:
        """Become the one who fetches ``key``; None if this or another process is fetching it.

        Who has waited for another process must look in the store once more after claiming, for
        the other may have ended in between.

        Raises:
            InvalidChunkKeyError.
        """
        file_name = key.file_name
        if key in self._flying:
            return None
        lock = None
        if self._directory is not None:
            path = self._directory / file_name
            if self._locks_held >= MAX_LOCK_FILES:
                if self._is_locked(path):
                    return None
            else:
                try:
                    lock = LockFile.acquire(path)
                except OSError:
                    self.lock_failures += 1
                else:
                    if lock is None:
                        return None
                    self._locks_held += 1
        flight = Flight(self, key, lock)
        self._flying[key] = flight
        return flight

    def flying(self, key: ChunkKey) -> Flight | None:
        """The flight of ``key`` in this process, if there is one.

        Who holds it gets its outcome even after it has ended.
        """
        return self._flying.get(key)

    async def wait(self, key: ChunkKey) -> bytes | None:
        """Wait until whoever fetches ``key`` is done; the chunk if it landed in this process.

        None otherwise: then look in the store, and claim the chunk if it is not there. Returns
        None soon if nobody is fetching it. Not bounded; the caller cancels.

        Raises:
            InvalidChunkKeyError.
            What the one in this process who fetches it gave to ``Flight.fail``.

        Cancelled: nothing changes for others.
        """
        file_name = key.file_name
        await trio.lowlevel.checkpoint()
        flight = self._flying.get(key)
        if flight is not None:
            return await flight.outcome()
        if self._directory is None:
            return None
        pause_s = _FIRST_PAUSE_S
        path = self._directory / file_name
        while self._is_locked(path):
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            flight = self._flying.get(key)
            if flight is not None:  # the other process is done, and another task was quicker
                return await flight.outcome()
        return None

    def end(self, key: ChunkKey, lock: LockFile | None) -> None:
        """Free ``key``; for ``Flight`` only."""
        del self._flying[key]
        if lock is not None:
            self._locks_held -= 1
            try:
                lock.release()
            except OSError:
                self.lock_failures += 1

    def _is_locked(self, path: Path) -> bool:
        try:
            return is_locked(path)
        except OSError:
            self.lock_failures += 1
            return False

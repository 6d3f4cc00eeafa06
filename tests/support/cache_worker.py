"""Another process that uses a store; what it does is its first argument.

    hammer FOLDER LIMIT SEED COUNT    put, read and discard at random; a line after each put
    crowd FOLDER LIMIT SEED COUNT     put and read, holding chunks in use meanwhile; a line each
    hold FOLDER NUMBER                claim a chunk, say so, wait for a line, store it, end
    fetch-all FOLDER LOG COUNT        get each of COUNT chunks as a reader would, in many tasks

A wrong byte is a traceback and an exit status other than 0.
"""

import os
import random
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import trio

from cache.chunkfiles import ChunkFiles
from cache.directory import DirectoryStore
from cache.errors import StoreFullError
from cache.flights import Flights
from cache.locks import try_lock
from cache.store import ChunkStore
from tests.support.cache_chunks import chunk_data, chunk_key, chunk_path

NUMBERS = 40


def hammer(folder: str, limit: str, seed: str, count: str) -> None:
    generator = random.Random(int(seed))
    files = ChunkFiles.open(Path(folder), int(limit))
    for _ in range(int(count)):
        number = generator.randrange(NUMBERS)
        name, data = chunk_key(number).relative_path, chunk_data(number)
        found = files.read(name, 0, len(data))
        if found is None:
            files.put(name, data)
            say(str(number))
        elif found != data:
            raise AssertionError(f"chunk {number} is wrong")
        if generator.random() < 0.1:
            files.discard(name)
    if files.statistics().errors:
        raise AssertionError(f"{files.statistics()}")
    files.close()


def crowd(folder: str, limit: str, seed: str, count: str) -> None:
    """With more writers than there is room for: a chunk may not be stored, but none goes in use."""
    generator = random.Random(int(seed))
    files = ChunkFiles.open(Path(folder), int(limit))
    full = 0
    for _ in range(int(count)):
        number, used = generator.randrange(NUMBERS), generator.randrange(NUMBERS)
        with reading(chunk_path(Path(folder), used)) as descriptor:
            try:
                files.put(chunk_key(number).relative_path, chunk_data(number))
            except StoreFullError:
                full += 1
            if descriptor is not None and not os.fstat(descriptor).st_nlink:
                raise AssertionError(f"chunk {used} was evicted while it was read")
        data = chunk_data(number)
        if files.read(chunk_key(number).relative_path, 0, len(data)) not in (None, data):
            raise AssertionError(f"chunk {number} is wrong")
        say(str(number))
    if files.statistics().errors != full or full == int(count):
        raise AssertionError(f"{files.statistics()}")
    files.close()


@contextmanager
def reading(path: Path) -> Iterator[int | None]:
    """Be a reader of a chunk, as the store's own reads are; None: it is not there."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield None
        return
    try:
        locked = try_lock(descriptor, shared=True)
        yield descriptor if locked and os.fstat(descriptor).st_nlink else None
    finally:
        os.close(descriptor)


async def hold(folder: str, number: str) -> None:
    with await DirectoryStore.open(Path(folder), None) as store:
        key = chunk_key(int(number))
        flight = Flights(store.locks_directory).claim(key)
        if flight is None:
            raise AssertionError("somebody else holds it")
        with flight:
            say("claimed")
            await trio.to_thread.run_sync(sys.stdin.readline)
            await store.put(key, chunk_data(int(number)))


async def fetch_all(folder: str, log: str, count: str) -> None:
    """Every fetch adds a line to the log, with one write: that line is never torn."""

    async def fetch(number: int) -> bytes:
        async with await trio.open_file(log, "ab", buffering=0) as file:
            await file.write(f"{number}\n".encode())
        return chunk_data(number)

    async def reader(number: int) -> None:
        data = await get(store, flights, number, partial(fetch, number))
        if data != chunk_data(number):
            raise AssertionError(f"chunk {number} is wrong")

    with await DirectoryStore.open(Path(folder), None) as store:
        flights = Flights(store.locks_directory)
        async with trio.open_nursery() as nursery:
            for number in range(int(count)):
                for _ in range(3):
                    nursery.start_soon(reader, number)


async def get(
    store: ChunkStore, flights: Flights, number: int, fetch: Callable[[], Awaitable[bytes]]
) -> bytes:
    """How a chunk is read, as the documentation of ``cache.flights`` says."""
    key, size = chunk_key(number), len(chunk_data(number))
    while (data := store.read(key, 0, size)) is None:
        flight = flights.claim(key)
        if flight is None:
            if (data := await flights.wait(key)) is not None:
                return data
            continue
        with flight:
            data = store.read(key, 0, size)
            if data is None:
                data = await fetch()
                flight.land(data)
                await store.put(key, data)
        return data
    return data


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "hammer":
        hammer(*arguments)
    elif what == "crowd":
        crowd(*arguments)
    elif what == "hold":
        folder, number = arguments
        trio.run(hold, folder, number)
    else:
        folder, log, count = arguments
        trio.run(fetch_all, folder, log, count)

"""What the layers of a mount share, around one simulated blob each."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from cache.errors import CacheWriteError
from cache.flights import Flights
from cache.key import ChunkKey
from cache.memory import MemoryStore
from cache.store import ChunkStore
from lazyfs.layer.counters import LayerCounters
from lazyfs.layer.engine import Engine
from lazyfs.layer.open import LayerContext, OpenLayer, open_layer
from lazyfs.layer.paged import PagedReader
from lazyfs.layer.pages import PageMemory
from lazyfs.model import VerifyMode
from tests.support.blob_simulator import BlobSimulator
from tests.support.layer_builder import Layer


@dataclass
class Opened:
    """A layer that was opened, and where its bytes come from."""

    layer: Layer
    blob: BlobSimulator
    counters: LayerCounters
    opened: OpenLayer

    @property
    def reader(self) -> PagedReader:
        return self.opened.reader

    async def expect(self, offset: int, length: int) -> None:
        """Read, and compare with the image."""
        data = await self.reader.read(offset, length)
        assert data == self.layer.image[offset : offset + length]

    async def expect_all(self) -> None:
        await self.expect(0, len(self.layer.image))

    def key(self, chunk: int) -> ChunkKey:
        """Under which a chunk is stored."""
        chunks = self.opened.chunks
        assert chunks is not None
        return chunks.piece(chunk).key


class Rig:
    """Opens layers that share one store, as those of one mount do."""

    def __init__(self, nursery: trio.Nursery, store: ChunkStore, timeout_s: float) -> None:
        self.nursery = nursery
        self.flights = Flights(getattr(store, "locks_directory", None))
        self.store = store
        self.engine = Engine(
            nursery=nursery,
            store=store,
            flights=self.flights,
            timeout_s=timeout_s,
            requests=trio.CapacityLimiter(16),
            workers=trio.CapacityLimiter(2),
        )
        self._number = 0

    async def open(
        self,
        layer: Layer,
        verify: VerifyMode = VerifyMode.ALWAYS,
        *,
        blob: BlobSimulator | None = None,
        page_bytes: int = 0,
    ) -> Opened:
        """Open a layer; without a page memory unless ``page_bytes`` says so."""
        blob = blob or BlobSimulator(layer.blob)
        counters = LayerCounters()
        context = LayerContext(
            self._number, "test/image layer 1", verify, self.engine, PageMemory(page_bytes)
        )
        self._number += 1
        opened = await open_layer(layer.plan(verify), blob, None, counters, context)
        blob.forget()
        return Opened(layer, blob, counters, opened)


@asynccontextmanager
async def rigged(store: ChunkStore | None = None, timeout_s: float = 0) -> AsyncIterator[Rig]:
    """A rig; when the block ends, all that it began must come to an end by itself."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        rig = Rig(nursery, store or MemoryStore(None), timeout_s)
        try:
            yield rig
        except Exception as error:  # noqa: BLE001 - raised again below
            failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure  # not in a group
    assert rig.flights._flying == {}
    assert rig.engine.turns.line.under_way == 0
    assert rig.engine.requests.borrowed_tokens == rig.engine.workers.borrowed_tokens == 0


class RottingStore(MemoryStore):
    """Lets a test change what it holds."""

    def rot(self, key: ChunkKey, offset: int = 5000) -> None:
        data = bytearray(self._chunks[key])
        data[offset] ^= 1
        self._chunks[key] = bytes(data)

    def keys(self, form: str) -> list[ChunkKey]:
        return [key for key in self._chunks if key.form.startswith(form)]


class ReadOnlyStore(MemoryStore):
    """Neither stores nor drops anything; ``let_in`` puts a chunk past that."""

    def __init__(self) -> None:
        super().__init__(None)
        self.tried = 0

    async def put(self, key: ChunkKey, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.tried += 1
        raise CacheWriteError("read-only file system")

    async def discard(self, key: ChunkKey) -> None:
        await trio.lowlevel.checkpoint()
        raise CacheWriteError("read-only file system")

    async def let_in(self, key: ChunkKey, data: bytes) -> None:
        await super().put(key, data)


def noise(length: int, seed: int = 0) -> bytes:
    """Bytes that zstd cannot shrink."""
    return random.Random(seed).randbytes(length)

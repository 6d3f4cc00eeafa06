"""What the layers of a conversion know of each other, gathered while they are read.

A layer waits for the names of those below it only if it leaves something open. They were begun
before it, and never wait for a layer above. One that was not read, because its conversion is
known already, is read for its names if somebody asks.
"""

from collections.abc import Sequence
from functools import partial

import trio

from lazyfs.convert.below import LowerFile, extract
from lazyfs.convert.build import build_image
from lazyfs.convert.images import open_temporary
from lazyfs.convert.ingest import read_layer
from lazyfs.convert.ledger import Ledger
from lazyfs.convert.sourcelayers import LayerKind, SourceLayer
from lazyfs.convert.tarstream import Readable, TarReader
from lazyfs.erofs.build.lower import LowerNames
from registry.interfaces import ImageSource


class LowerLayers:
    """Names of all layers of one conversion, as they become known."""

    def __init__(self, source: ImageSource, ledger: Ledger | None) -> None:
        """Layers are read from ``source``; ``ledger`` may know their names."""
        self._source = source
        self._ledger = ledger
        self._names: dict[SourceLayer, LowerNames] = {}
        self._pending: dict[SourceLayer, trio.Event] = {}
        self._reading = trio.Lock()

    def expect(self, layers: Sequence[SourceLayer]) -> None:
        """Say which layers will be converted, before the first one is."""
        for layer in layers:
            self._pending.setdefault(layer.alone(), trio.Event())
            if layer.kind is not LayerKind.TAR:
                self.release(layer)

    def provide(self, layer: SourceLayer, names: LowerNames) -> None:
        """Take the names of a layer that was read."""
        self._names[layer.alone()] = names
        self.release(layer)

    def release(self, layer: SourceLayer) -> None:
        """Say that a layer will not be read, or has been."""
        self._pending[layer.alone()].set()

    async def names(self, layers: Sequence[SourceLayer]) -> list[LowerNames]:
        """The names of some layers, in their order.

        Raises:
            ConversionError, RegistryError: a layer that must be read cannot be.
        """
        return [await self._names_of(layer.alone()) for layer in layers]

    async def file(self, layer: SourceLayer, path: bytes) -> LowerFile | None:
        """What a layer has at a path, which is read through for it."""
        if layer.kind is not LayerKind.TAR:
            return None

        def use(tar: Readable) -> LowerFile | None:
            return extract(TarReader(tar), path)

        blob = await self._source.open_blob(layer.descriptor)
        return await read_layer(blob, layer.descriptor, layer.diff_id, lambda _: None, use)

    async def _names_of(self, layer: SourceLayer) -> LowerNames:
        await self._pending[layer].wait()
        if layer in self._names:
            return self._names[layer]
        if layer.kind is not LayerKind.TAR:
            return LowerNames()
        async with self._reading:
            if layer not in self._names:
                known = self._ledger.names(layer) if self._ledger is not None else None
                self._names[layer] = await self._read(layer) if known is None else known
        return self._names[layer]

    async def _read(self, layer: SourceLayer) -> LowerNames:
        found: list[LowerNames] = []

        def use(tar: Readable) -> None:
            with open_temporary() as spool:
                build_image(tar, spool, on_names=found.append)

        blob = await self._source.open_blob(layer.descriptor)
        await read_layer(blob, layer.descriptor, layer.diff_id, lambda _: None, use)
        return found[0]


class LayersBelow:
    """The layers below one, for the worker thread that makes its image (``Below``)."""

    def __init__(self, lower: LowerLayers, layers: Sequence[SourceLayer]) -> None:
        """Take ``layers``, topmost first."""
        self._lower = lower
        self._layers = layers

    def names(self) -> list[LowerNames]:
        """As ``Below.names``."""
        return trio.from_thread.run(self._lower.names, self._layers)

    def file(self, number: int, path: bytes) -> LowerFile | None:
        """As ``Below.file``."""
        return trio.from_thread.run(partial(self._lower.file, self._layers[number], path))

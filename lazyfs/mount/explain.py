"""Why a path of a mount is as it is: layer, inode, extents, chunks, proofs, last errors.

No file data is read and nothing is waited for longer than ``WITHIN_S``: what is not known by then
is left out, and that is said. Metadata that nobody has read yet may be fetched.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import trio

from cache.key import ChunkKey
from cache.store import ChunkStore
from lazyfs.erofs.extents import METABOX, Extent, Hole
from lazyfs.errors import LazyfsError
from lazyfs.image.erofs_layer import ErofsLayer
from lazyfs.image.nodes import Place, place_of
from lazyfs.image.tracing import Route, Sighting, follow, sightings
from lazyfs.interfaces import ImageTree
from lazyfs.layer.chunks import Chunks
from lazyfs.layer.failures import FailureMemory
from lazyfs.layer.whole import WholeLayer
from lazyfs.model import ROOT_NODE, ByteRange, Nid, NodeId
from lazyfs.mount.report import LayerReport

WITHIN_S = 2.0
MAX_EXTENTS = 1000
MAX_CHUNKS = 4096
"""Of one file: those behind are neither listed nor counted."""

CHUNKS_IN_A_ROW = 256
"""Looked up before others have their turn: each may be a system call."""

Document = dict[str, object]


@dataclass(frozen=True, slots=True)
class Explainer:
    """Knows what an image is made of."""

    tree: ImageTree
    layers: Sequence[ErofsLayer]
    """Bottom layer first."""
    reports: Sequence[LayerReport]
    store: ChunkStore
    failures: FailureMemory

    async def explain(self, path: bytes) -> Document:
        """All that can be told about a path, ready for JSON."""
        document: Document = {"path": os.fsdecode(path), "result": "unknown", "problem": None}
        try:
            with trio.move_on_after(WITHIN_S) as limit:
                await self._explain(path, document)
            if limit.cancelled_caught:
                document["problem"] = (
                    f"metadata that are not here yet did not come in {WITHIN_S:g} s"
                )
        except LazyfsError as error:
            document["problem"] = f"{type(error).__name__}: {error}"
        return document

    async def _explain(self, path: bytes, document: Document) -> None:
        route = Route()
        links: list[Document] = []
        document["links"] = links
        try:
            await follow(self.tree, path, route)
        finally:
            names = b"/" + b"/".join(route.names)
            document["resolved"] = os.fsdecode(names)
            links += [
                {"at": os.fsdecode(link.at), "target": os.fsdecode(link.target)}
                for link in route.links
            ]
        document["result"] = "absent" if route.node is None else "found"
        if route.node is not None:
            await self._object(route.node, document)
        seen: list[Document] = []
        document["layers"] = seen
        async for sighting in sightings(self.layers, route.names):
            seen.append(_sighting(sighting))  # noqa: PERF401 - what came in time is to stay
        if route.missing and any(item["what"] != "not a directory" for item in seen):
            document["result"] = "hidden"

    async def _object(self, node: NodeId, document: Document) -> None:
        place = self._place(node)
        layer, nid = self.layers[place.layer], place.nid
        inode = await layer.inode(nid)
        document |= {
            "node": node,
            "layer": place.layer + 1,
            "nid": nid,
            "mode": stat.filemode(inode.mode),
            "size_bytes": inode.size_bytes,
        }
        if stat.S_ISLNK(inode.mode):
            document["target"] = os.fsdecode(await layer.link_target(nid))
        holder, data_nid = await layer.data_of(nid)
        image = self._report(holder, 0)
        if image is not None:
            document |= {
                "digest": str(image.descriptor.digest),
                "lazy": image.opened.lazy,
                "why": image.opened.why,
                "verified_by": image.opened.proof,
            }
        else:
            document |= {
                "lazy": True,
                "why": "a local file, read in place",
                "verified_by": "nothing",
            }
        await self._data(holder, data_nid, document)

    def _place(self, node: NodeId) -> Place:
        if node == ROOT_NODE:
            top = len(self.layers) - 1
            return Place(top, self.layers[top].image.root_nid)
        return place_of(node)

    def _report(self, layer: ErofsLayer, device: int) -> LayerReport | None:
        """What is known of a device of a layer; None for a local file."""
        reader = layer.device(device)
        return next((found for found in self.reports if found.opened.reader is reader), None)

    async def _data(self, layer: ErofsLayer, nid: Nid, document: Document) -> None:
        """Add where the data lie, and the state of the chunks that hold them."""
        inode = await layer.inode(nid)
        extents: list[Document] = []
        chunks: list[Document] = []
        counts = {"chunks": 0, "cached": 0}
        document |= {"extents": extents, "chunks": chunks, "counts": counts, "complete": False}
        offset = 0
        known: set[tuple[int, int]] = set()
        while runs := await layer.run(layer.image.extents(inode, offset, 1 << 62)):
            for run in runs:
                if len(extents) >= MAX_EXTENTS:
                    return
                extent: Document = {"offset": run.offset, "length": run.length}
                extents.append(extent)
                if isinstance(run, Hole):
                    extent["kind"] = "hole"
                    continue
                device = getattr(run, "device", METABOX)
                if device == METABOX:
                    extent["kind"] = "in other data of the image"
                    continue
                stored = run.length if isinstance(run, Extent) else getattr(run, "stored_bytes", 0)
                where = ByteRange(getattr(run, "address", 0), stored)
                kind = "plain" if isinstance(run, Extent) else "compressed"
                extent |= {"kind": kind, "device": device, "address": where.offset}
                for chunk in self._chunks(layer, device, where):
                    if len(chunks) >= MAX_CHUNKS:
                        return
                    number = chunk["index"]
                    if isinstance(number, int) and (device, number) not in known:
                        known.add((device, number))
                        chunks.append(chunk)
                        counts["chunks"] += 1
                        counts["cached"] += bool(chunk["cached"])
                        if len(chunks) % CHUNKS_IN_A_ROW == 0:
                            await trio.lowlevel.checkpoint()
            offset = runs[-1].offset + runs[-1].length
        document["complete"] = True

    def _chunks(self, layer: ErofsLayer, device: int, where: ByteRange) -> Iterator[Document]:
        """The chunks under a range of a device."""
        report = self._report(layer, device)
        if report is None:
            return
        for index, key, facts in _pieces(report, where):
            part = f"chunk {index}"
            failure = self.failures.last(report.name, part)
            yield {
                "device": device,
                "index": index,
                **facts,
                "digest": f"{key.algorithm}:{key.digest_hex}",
                "cached": self.store.contains(key),
                "last_error": failure and asdict(failure),
            }


def _sighting(sighting: Sighting) -> Document:
    return {
        "layer": sighting.layer + 1,
        "what": sighting.what,
        "at": os.fsdecode(sighting.at),
        "nid": sighting.nid,
        "hidden_by": sighting.hidden_by,
    }


def _pieces(
    report: LayerReport, where: ByteRange
) -> Iterator[tuple[int, ChunkKey, dict[str, int]]]:
    """Number, key and place of the chunks under a range, at most ``MAX_CHUNKS``."""
    reader, chunks = report.opened.reader, report.opened.chunks
    if isinstance(reader, WholeLayer):
        for index, key in reader.keys_over(where)[:MAX_CHUNKS]:
            yield index, key, {}
    elif chunks is not None:
        yield from _table_pieces(chunks, where)


def _table_pieces(
    chunks: Chunks, where: ByteRange
) -> Iterator[tuple[int, ChunkKey, dict[str, int]]]:
    offset = where.offset
    while offset < where.end:
        index = chunks.table.index_at(offset)
        frame, content = chunks.table.frame(index), chunks.table.chunk(index)
        place = {
            "blob_offset": frame.offset,
            "blob_bytes": frame.length,
            "image_offset": content.offset,
            "image_bytes": content.length,
        }
        yield index, chunks.piece(index).key, place
        offset = content.end

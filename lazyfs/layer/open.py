"""From the plan of a layer to its reader: which proof it has decides which reader it gets."""

import dataclasses

from lazyfs.errors import ImageFormatError, LazyfsError
from lazyfs.interfaces import BlobSource
from lazyfs.layer.counters import LayerCounters
from lazyfs.layer.fetcher import Engine, PieceFetcher
from lazyfs.layer.hashes import HashPieces
from lazyfs.layer.metadata import fetch_metadata
from lazyfs.layer.paged import PagedReader
from lazyfs.layer.pages import PageMemory
from lazyfs.layer.raw import RawLayer
from lazyfs.layer.seekable import Chunks, FrameLayer, StoredLayer, VerityLayer
from lazyfs.layer.whole import open_whole
from lazyfs.model import VerifyMode
from lazyfs.plan import LayerMode, LayerPlan
from lazyfs.seekable.annotations import SeekableAnnotations


@dataclasses.dataclass(frozen=True, slots=True)
class LayerContext:
    """What a layer is opened with."""

    number: int
    """Position in the image, from 0 at the bottom; names the layer in the page memory."""
    name: str
    """Image and layer, for log lines."""
    verify: VerifyMode
    engine: Engine
    pages: PageMemory


@dataclasses.dataclass(frozen=True, slots=True)
class OpenLayer:
    """An opened layer and what is known of it."""

    reader: PagedReader
    mode: LayerMode
    lazy: bool
    why: str
    proof: str
    """What proves its bytes, for ``lazyfs status``."""
    chunks: Chunks | None


async def open_layer(
    plan: LayerPlan, source: BlobSource, counters: LayerCounters, context: LayerContext
) -> OpenLayer:
    """Open one layer.

    Raises:
        LazyfsError: of the kind that happened, naming the layer: its metadata are not what the
            manifest promises, break the format, or cannot be had.
    """
    try:
        if plan.mode is LayerMode.SEEKABLE and plan.annotations is not None:
            return await _open_seekable(plan, plan.annotations, source, counters, context)
        if plan.mode is LayerMode.RAW:
            raw = RawLayer(context.number, source, context.pages, counters)
            return OpenLayer(raw, plan.mode, True, plan.why, "nothing", None)
        whole = await open_whole(
            plan, source, counters, context.engine, context.pages, context.number
        )
        proof = f"{plan.descriptor.digest.algorithm} of the whole blob"
        return OpenLayer(whole, LayerMode.WHOLE, False, plan.why, proof, None)
    except LazyfsError as error:
        raise type(error)(f"{context.name}: {error}") from error


async def _open_seekable(
    plan: LayerPlan,
    annotations: SeekableAnnotations,
    source: BlobSource,
    counters: LayerCounters,
    context: LayerContext,
) -> OpenLayer:
    metadata = await fetch_metadata(annotations, source)
    table = metadata.table
    fetcher = PieceFetcher(context.engine, source, counters, context.name)
    digest = str(plan.descriptor.digest)
    verify = context.verify
    common = (fetcher, context.pages, counters)
    if verify is VerifyMode.ALWAYS and metadata.verity is not None:
        hashes = HashPieces(metadata.verity, fetcher, counters, context.name)
        chunks = Chunks(table, digest, "data", verify=True)
        reader: PagedReader = VerityLayer(context.number, chunks, *common, hashes, context.name)
        algorithm = metadata.verity.params.algorithm
        proof = f"SHA-512 of each frame, dm-verity ({algorithm}) of each block"
    elif verify is not VerifyMode.OFF and len(table) and table.digest(0) is None:
        raise ImageFormatError("neither chunk table nor dm-verity tree can prove the chunks")
    elif verify is VerifyMode.ALWAYS:
        chunks = Chunks(table, digest, "frame", verify=True)
        workers = context.engine.workers
        reader = FrameLayer(context.number, chunks, *common, workers, context.name)
        proof = "SHA-512 of each frame"
        counters.notes.append("no dm-verity tree: checked by the SHA-512 of its frames only")
    else:
        chunks = Chunks(table, digest, "data", verify=verify is VerifyMode.FETCH)
        reader = StoredLayer(context.number, chunks, *common)
        proof = "SHA-512 of each frame on arrival" if verify is VerifyMode.FETCH else "nothing"
    return OpenLayer(reader, plan.mode, True, plan.why, proof, chunks)

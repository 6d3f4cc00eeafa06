"""From the plan of a layer to its reader: which proof it has decides which reader it gets."""

import dataclasses
from functools import partial

from lazyfs.errors import LazyfsError, UnsupportedFeatureError
from lazyfs.interfaces import BlobSource
from lazyfs.layer.ahead import LayerAhead
from lazyfs.layer.chunks import Chunks
from lazyfs.layer.counters import LayerCounters
from lazyfs.layer.engine import Engine
from lazyfs.layer.fetcher import PieceFetcher
from lazyfs.layer.hashes import HashPieces
from lazyfs.layer.metadata import LayerMetadata, fetch_metadata
from lazyfs.layer.paged import PagedReader
from lazyfs.layer.pages import PageMemory
from lazyfs.layer.raw import RawLayer
from lazyfs.layer.seekable import FrameLayer, StoredLayer, VerityLayer
from lazyfs.layer.whole import open_whole
from lazyfs.model import VerifyMode
from lazyfs.plan import LayerMode, LayerPlan

_ALGORITHM_NAMES = {"sha512": "SHA-512", "sha256": "SHA-256", None: "nothing"}


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
    plan: LayerPlan,
    source: BlobSource,
    index: BlobSource | None,
    counters: LayerCounters,
    context: LayerContext,
) -> OpenLayer:
    """Open one layer, or one blob that belongs to a layer.

    Args:
        plan: how.
        source: its blob.
        index: the blob of ``plan.index``.
        counters: of the layer.
        context: of the mount.

    Raises:
        LazyfsError: of the kind that happened, naming the layer: its metadata are not what the
            manifest promises, break the format, or cannot be had.
    """
    try:
        if plan.mode is LayerMode.RAW:
            raw = RawLayer(context.number, source, context.pages, counters)
            return OpenLayer(raw, plan.mode, True, plan.why, "nothing", None)
        why = plan.why
        if plan.pointers is not None:
            try:
                metadata = await fetch_metadata(plan.pointers, source, index)
                return _open_seekable(plan, metadata, source, counters, context)
            except UnsupportedFeatureError as error:
                why = f"fetched whole: {error}"
        whole = await open_whole(
            plan,
            source,
            counters,
            context.engine,
            context.pages,
            context.number,
            context.name,
        )
        proof = f"{plan.descriptor.digest.algorithm} of the whole blob"
        return OpenLayer(whole, LayerMode.WHOLE, False, why, proof, None)
    except LazyfsError as error:
        raise type(error)(f"{context.name}: {error}") from error


def _open_seekable(
    plan: LayerPlan,
    metadata: LayerMetadata,
    source: BlobSource,
    counters: LayerCounters,
    context: LayerContext,
) -> OpenLayer:
    """Choose the reader by what can prove the chunks.

    Raises:
        UnsupportedFeatureError: nothing can.
        ImageFormatError, HashBlockMismatchError: the tree is broken.
    """
    verify, verity = context.verify, metadata.verity
    fetcher = PieceFetcher(context.engine, source, counters, context.name)
    common = (fetcher, context.pages, counters)
    checks = f"{_ALGORITHM_NAMES[metadata.table.digest_algorithm]} of each frame"

    def chunks_as(form: str, *, checked: bool = True) -> Chunks:
        digest = str(plan.descriptor.digest)
        return Chunks(
            metadata.table,
            metadata.image_size_bytes,
            digest,
            form,
            verify=checked,
            pieces=context.engine.pieces,
        )

    reader: PagedReader
    if verify is VerifyMode.OFF:
        chunks = chunks_as("data", checked=False)
        reader = StoredLayer(context.number, chunks, *common)
        proof = "nothing"
    elif verity is not None and (verify is VerifyMode.ALWAYS or not metadata.chunks_proven):
        chunks = chunks_as("data")
        hashes = HashPieces(verity, chunks, fetcher, context.engine.leaves)
        reader = VerityLayer(context.number, chunks, *common, hashes, context.engine)
        proof = f"dm-verity ({verity.params.algorithm}) of each block"
        if metadata.chunks_proven:
            proof = f"{checks}, {proof}"
    elif not metadata.chunks_proven:
        raise UnsupportedFeatureError(
            "neither the chunk table nor a dm-verity tree can prove the chunks"
        )
    elif verify is VerifyMode.ALWAYS:
        chunks = chunks_as("frame")
        reader = FrameLayer(context.number, chunks, *common, context.engine)
        proof = checks
        counters.notes.append(f"no dm-verity tree: checked by the {checks} only")
    else:
        chunks = chunks_as("data")
        reader = StoredLayer(context.number, chunks, *common)
        proof = f"{checks} on arrival"
    fetcher.between = chunks.between
    reader.ahead = LayerAhead(
        chunks.table,
        chunks.image_size_bytes,
        context.engine.turns.line,
        partial(reader.begin, background=True),
    )
    if context.engine.guesser is not None:
        reader.guesses = context.engine.guesser.layer(chunks, reader.begin, counters)
    return OpenLayer(reader, plan.mode, True, plan.why, proof, chunks)

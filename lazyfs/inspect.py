"""What an image is made of, learnt from a few kilobytes of it.

``describe`` gives one JSON document: the manifest and how it was found, the configuration,
and for each layer its annotations, chunk table, dm-verity parameters and superblock.
"""

import os
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import TypeAlias

import trio

from lazyfs.erofs import ondisk
from lazyfs.erofs.superblock import HEAD_BYTES, Superblock, decode_superblock
from lazyfs.errors import LazyfsError, SourceUnavailableError
from lazyfs.image.nodes import place_of
from lazyfs.interfaces import ImageTree
from lazyfs.layer.counters import LayerCounters
from lazyfs.layer.metadata import LayerMetadata, VerityMetadata, fetch_metadata
from lazyfs.layer.peek import fetch_start
from lazyfs.layer.source import RegistrySource
from lazyfs.layer.together import all_of
from lazyfs.model import ROOT_NODE, Attributes, ByteRange, NodeId, VerifyMode
from lazyfs.plan import plan_layer
from lazyfs.resolve import ResolvedImage, resolve_image
from lazyfs.seekable.chunktable import ChunkTable
from lazyfs.seekable.mediatypes import LayerEncoding, is_erofs_layer
from lazyfs.seekable.specannotations import UNCOMPRESSED_DIGEST
from registry.errors import ContentError, RegistryError
from registry.interfaces import Access, ImageSource
from registry.jsondoc import JsonObject, parse_object
from registry.manifest import Descriptor, Index, decode
from registry.transports import open_source

Document: TypeAlias = dict[str, object]

MAX_CONFIG_BYTES = 4 << 20

_CONFIG_KEYS = ("Entrypoint", "Cmd", "Env", "User", "WorkingDir", "ExposedPorts", "Volumes")


def _features(kind: str) -> dict[int, str]:
    """Feature bits and their names in erofs_fs.h; some bits mean two things."""
    names: dict[int, list[str]] = {}
    prefix = f"EROFS_FEATURE_{kind}_"
    for name, bit in vars(ondisk).items():
        if name.startswith(prefix) and isinstance(bit, int):
            names.setdefault(bit, []).append(name.removeprefix(prefix).lower())
    return {bit: "/".join(words) for bit, words in sorted(names.items())}


_FEATURES = {kind: _features(kind) for kind in ("COMPAT", "INCOMPAT")}


async def describe(
    name: str, access: Access, platform: str | None, *, chunks: bool = False
) -> Document:
    """Describe an image in a registry, a layout folder or an archive.

    Args:
        name: of the image.
        access: how to reach it.
        platform: which image of an index; None: this machine's.
        chunks: list every chunk.

    Raises:
        LazyfsError: the image cannot be resolved or read. What is wrong with a single layer is
            told in the layer's ``problem``.
    """
    counters = LayerCounters()
    try:
        async with open_source(name, access) as source:
            resolved = await resolve_image(source, platform)
            raw = await source.fetch_content(resolved.manifest.config, MAX_CONFIG_BYTES)
            config = _configuration(raw)
            inspector = _Inspector(source, resolved.manifest.layers, counters, chunks=chunks)
            numbers = range(1, len(resolved.manifest.layers) + 1)
            layers = await all_of([partial(inspector.layer, number) for number in numbers])
            document = _manifest(resolved) | {
                "indexes": [await _index(entry, source) for entry in resolved.indexes],
                "config": _config(config),
                "layers": _with_diff_ids(layers, config),
            }
    except RegistryError as error:
        raise SourceUnavailableError(str(error)) from error
    return document | {"fetched_bytes": counters.fetched_bytes, "requests": counters.requests}


def describe_superblock(superblock: Superblock) -> Document:
    """A superblock as JSON."""
    return {
        "block_bytes": superblock.block_bytes,
        "blocks": superblock.block_count,
        "inodes": superblock.inode_count,
        "root_nid": superblock.root_nid,
        "uuid": superblock.uuid.hex(),
        "volume_name": superblock.volume_name.decode("utf-8", "replace"),
        "build_time": superblock.build_time_s or superblock.epoch_s,
        "extra_devices": superblock.device_count,
        "compat": _feature_names("COMPAT", superblock.feature_compat),
        "incompat": _feature_names("INCOMPAT", superblock.feature_incompat),
    }


async def describe_local(name: str, path: str) -> Document:
    """Describe a local EROFS image.

    Raises:
        LazyfsError: it is none, or cannot be read.
    """
    try:
        async with await trio.open_file(path, "rb") as file:
            front = await file.read(ondisk.EROFS_SUPER_OFFSET + HEAD_BYTES)
            size_bytes = await file.seek(0, os.SEEK_END)
    except OSError as error:
        raise SourceUnavailableError(f"{path}: {error.strerror}") from error
    superblock = _superblock(front, proven=False)
    layer: Document = {"number": 1, "size_bytes": size_bytes, "superblock": superblock}
    return {"image": name, "layers": [layer]}


async def walk(tree: ImageTree) -> AsyncGenerator[tuple[bytes, NodeId, Attributes], None]:
    """Every object of a tree with its path (without a leading slash), parents first.

    Raises:
        LazyfsError: a directory or inode cannot be read.
    """
    yield b"", ROOT_NODE, await tree.attributes(ROOT_NODE)
    pending: list[tuple[bytes, NodeId]] = [(b"", ROOT_NODE)]
    while pending:
        path, directory = pending.pop()
        below: list[tuple[bytes, NodeId]] = []
        position = 0
        while entries := await tree.entries(directory, position):
            position = entries[-1].next_position
            for entry in entries:
                attributes = await tree.attributes(entry.node)
                full = path + b"/" + entry.name if path else entry.name
                yield full, entry.node, attributes
                if attributes.mode & 0o170000 == 0o040000:
                    below.append((full, entry.node))
        pending += reversed(below)


def layer_of(node: NodeId) -> int:
    """The layer (1 is the bottom one) that shows an object; the root is of the top layer: 0."""
    return 0 if node == ROOT_NODE else place_of(node).layer + 1


def _manifest(resolved: ResolvedImage) -> Document:
    return {
        "image": resolved.name,
        "digest": str(resolved.descriptor.digest),
        "media_type": resolved.descriptor.media_type,
        "size_bytes": resolved.descriptor.size_bytes,
        "platform": resolved.platform,
        "annotations": dict(resolved.manifest.annotations),
    }


async def _index(descriptor: Descriptor, source: ImageSource) -> Document:
    index = decode(await source.fetch_manifest(descriptor), descriptor.media_type)
    entries = index.manifests if isinstance(index, Index) else ()
    return {
        "digest": str(descriptor.digest),
        "media_type": descriptor.media_type,
        "manifests": [
            {
                "digest": str(entry.digest),
                "media_type": entry.media_type,
                "platform": str(entry.platform) if entry.platform else None,
            }
            for entry in entries
        ],
    }


def _configuration(raw: bytes) -> JsonObject | str:
    """The configuration, or what is wrong with it; nothing in it is needed for mounting."""
    try:
        return parse_object(raw, "configuration", MAX_CONFIG_BYTES)
    except ContentError as error:
        return str(error)


def _config(config: JsonObject | str) -> Document:
    """What a person wants of a configuration."""
    if isinstance(config, str):
        return {"problem": config}
    inner = config.get("config")
    run = inner if isinstance(inner, dict) else {}
    document: Document = {
        "architecture": config.get("architecture"),
        "os": config.get("os"),
        "os_features": config.get("os.features"),
        "created": config.get("created"),
    }
    return document | {key.lower(): run[key] for key in _CONFIG_KEYS if run.get(key)}


def _with_diff_ids(layers: list[Document], config: JsonObject | str) -> list[Document]:
    """Name each layer's diff ID: of its annotation, else of the configuration."""
    rootfs = None if isinstance(config, str) else config.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if isinstance(diff_ids, list) and len(diff_ids) == len(layers):
        pairs = zip(layers, diff_ids, strict=True)
        layers = [{**layer, "diff_id": diff_id} for layer, diff_id in pairs]
    for layer in layers:
        annotations = layer["annotations"]
        if isinstance(annotations, dict) and UNCOMPRESSED_DIGEST in annotations:
            layer["diff_id"] = annotations[UNCOMPRESSED_DIGEST]
    return layers


class _Inspector:
    """Describes the layers of one image."""

    def __init__(
        self,
        source: ImageSource,
        layers: Sequence[Descriptor],
        counters: LayerCounters,
        *,
        chunks: bool,
    ) -> None:
        self._source = source
        self._layers = layers
        self._counters = counters
        self._chunks = chunks

    async def layer(self, number: int) -> Document:
        """Describe a layer, counted from 1; what is wrong with it is its ``problem``."""
        descriptor = self._layers[number - 1]
        document: Document = {
            "number": number,
            "digest": str(descriptor.digest),
            "media_type": descriptor.media_type,
            "size_bytes": descriptor.size_bytes,
            "annotations": dict(descriptor.annotations),
        }
        try:
            if is_erofs_layer(descriptor.media_type) is not None:
                await self._look_into(number, document)
        except (LazyfsError, RegistryError) as error:
            document["problem"] = str(error)
        return document

    async def _look_into(self, number: int, document: Document) -> None:
        descriptor = self._layers[number - 1]
        following = self._layers[number] if number < len(self._layers) else None
        plan = plan_layer(f"layer {number}", descriptor, following, VerifyMode.OFF)
        blob = await self._open(descriptor)
        if plan.pointers is not None:
            index = None if plan.index is None else await self._open(plan.index)
            metadata = await fetch_metadata(plan.pointers, blob, index)
            document["chunk_table"] = _table(metadata)
            document["verity"] = None if metadata.verity is None else _verity(metadata.verity)
            if self._chunks:
                indexes = range(len(metadata.table))
                document["chunks"] = [_chunk(metadata.table, index) for index in indexes]
            start = await fetch_start(metadata, blob)
            if start.data:
                document["superblock"] = _superblock(start.data, proven=start.proven)
        elif plan.encoding is LayerEncoding.RAW:
            front = await blob.fetch(ByteRange(0, min(blob.size_bytes, 4096)))
            document["superblock"] = _superblock(front, proven=False)

    async def _open(self, descriptor: Descriptor) -> RegistrySource:
        return RegistrySource(await self._source.open_blob(descriptor), self._counters)


def _superblock(front: bytes, *, proven: bool) -> Document:
    start = ondisk.EROFS_SUPER_OFFSET
    superblock = decode_superblock(front[start : start + HEAD_BYTES])
    return describe_superblock(superblock) | {"proven": proven}


def _table(metadata: LayerMetadata) -> Document:
    table = metadata.table
    stored = sum(table.frame(index).length for index in range(len(table)))
    lengths = [table.chunk(index).length for index in range(len(table))]
    return {
        "chunks": len(table),
        "chunk_bytes": max(lengths, default=0),
        "image_bytes": metadata.image_size_bytes,
        "content_bytes": table.content_size_bytes,
        "compressed_bytes": stored,
        "ratio": round(table.content_size_bytes / stored, 3) if stored else None,
        "frame_digests": table.digest_algorithm,
        "proven": metadata.table_proven,
    }


def _verity(verity: VerityMetadata) -> Document:
    return {
        "algorithm": verity.params.algorithm,
        "root_digest": verity.root_digest.hex(),
        "data_block_bytes": verity.params.data_block_size_bytes,
        "hash_block_bytes": verity.params.hash_block_size_bytes,
        "data_blocks": verity.params.data_blocks,
        "salt": verity.params.salt.hex(),
        "uuid": verity.params.uuid.hex(),
        "payload_bytes": verity.payload.length,
        "in_chunks": verity.in_content,
    }


def _chunk(table: ChunkTable, index: int) -> Document:
    frame, chunk, digest = table.frame(index), table.chunk(index), table.digest(index)
    return {
        "index": index,
        "image_offset": chunk.offset,
        "image_bytes": chunk.length,
        "blob_offset": frame.offset,
        "frame_bytes": frame.length,
        "digest": f"{table.digest_algorithm}:{digest.hex()}" if digest else None,
    }


def _feature_names(kind: str, bits: int) -> list[str]:
    known = [name for bit, name in _FEATURES[kind].items() if bits & bit]
    rest = bits & ~sum(_FEATURES[kind])
    return known + ([f"unknown {rest:#x}"] if rest else [])

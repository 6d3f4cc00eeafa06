"""An image store in memory: source and destination at once, with faults and counters.

``sample_*`` make images whose bytes are known.
"""

import gzip
import hashlib
import json
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from registry.digest import Digest
from registry.errors import ContentError, NotFoundError, TransportError
from registry.health import HostStatus
from registry.interfaces import ImageSource
from registry.manifest import Descriptor, decode, describe, verify_content
from registry.mediatype import OCI_CONFIG, OCI_INDEX, OCI_LAYER_TAR_GZIP, OCI_MANIFEST
from registry.ranges import Range
from tests.support.tiny_image import tar_layer

PIECE_BYTES = 10_000


class MemoryStore:
    """Content by digest, and what its name means."""

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self.content: dict[Digest, bytes] = {}
        self.top: Descriptor | None = None
        self.log: list[tuple[str, Digest]] = []
        """What was written, in order: ``blob``, ``manifest``, ``tag``."""
        self.opened: list[Digest] = []
        """Blobs that were read."""
        self.refuse_blobs_after: int | None = None
        """How many blobs may be written before writing fails."""
        self.stall_at: int | None = None
        """Offset at which a blob's stream stops giving bytes, for ever."""
        self.stalled = trio.Event()
        self.can_mount = False

    @property
    def named(self) -> Descriptor:
        assert self.top is not None
        return self.top

    def put(self, raw: bytes, media_type: str, **fields: Any) -> Descriptor:
        digest = Digest.of(raw)
        self.content[digest] = raw
        return Descriptor(media_type, digest, len(raw), **fields)

    def document(self, descriptor: Descriptor) -> Any:
        return json.loads(self.content[descriptor.digest])

    def _find(self, descriptor: Descriptor) -> bytes:
        try:
            return self.content[descriptor.digest]
        except KeyError:
            raise NotFoundError(f"{self.name}: no {descriptor.digest}", status=404) from None

    async def resolve(self) -> Descriptor:
        await trio.lowlevel.checkpoint()
        if self.top is None:
            raise NotFoundError(f"{self.name}: no such image", status=404)
        return self.top

    async def fetch_manifest(self, descriptor: Descriptor) -> bytes:
        return await self.fetch_content(descriptor, 4 << 20)

    async def fetch_content(self, descriptor: Descriptor, limit_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        raw = self._find(descriptor)
        assert len(raw) <= limit_bytes
        verify_content(raw, descriptor, self.name)
        return raw

    async def open_blob(self, descriptor: Descriptor) -> "MemoryBlob":
        await trio.lowlevel.checkpoint()
        self.opened.append(descriptor.digest)
        return MemoryBlob(self, self._find(descriptor), descriptor.size_bytes)

    def hosts(self) -> tuple[HostStatus, ...]:
        return ()

    async def has_blob(self, descriptor: Descriptor) -> bool:
        await trio.lowlevel.checkpoint()
        return descriptor.digest in self.content

    async def mount_blob(self, descriptor: Descriptor, source: ImageSource) -> bool:
        await trio.lowlevel.checkpoint()
        if not self.can_mount:
            return False
        assert isinstance(source, MemoryStore)
        self.content[descriptor.digest] = source.content[descriptor.digest]
        return True

    async def push_blob(
        self, descriptor: Descriptor, data: Callable[[], AsyncIterable[bytes]]
    ) -> None:
        if self.refuse_blobs_after is not None:
            self.refuse_blobs_after -= 1
            if self.refuse_blobs_after < 0:
                raise TransportError(f"{self.name}: the disk is full")
        raw = b"".join([piece async for piece in data()])
        verify_content(raw, descriptor, self.name)
        self.content[descriptor.digest] = raw
        self.log.append(("blob", descriptor.digest))

    async def push_manifest(self, raw: bytes, descriptor: Descriptor) -> None:
        await trio.lowlevel.checkpoint()
        verify_content(raw, descriptor, self.name)
        document = decode(raw, descriptor.media_type)
        for needed in getattr(document, "layers", ()) or getattr(document, "manifests", ()):
            assert needed.digest in self.content, "named before it was written"
        self.content[descriptor.digest] = raw
        self.log.append(("manifest", descriptor.digest))

    async def tag(self, descriptor: Descriptor, raw: bytes) -> None:
        await self.push_manifest(raw, descriptor)
        self.top = descriptor
        self.log.append(("tag", descriptor.digest))


class MemoryBlob:
    """A blob of a ``MemoryStore``."""

    def __init__(self, store: MemoryStore, raw: bytes, size_bytes: int) -> None:
        self._store = store
        self._raw = raw
        self.size_bytes = size_bytes
        self.origin = store.name
        self.ranges_at_once = 1

    async def fetch(self, offset: int, length: int) -> bytes:
        await trio.lowlevel.checkpoint()
        return self._raw[offset : offset + length]

    def distrust(self, offset: int, length: int) -> str:
        return self.origin

    @asynccontextmanager
    async def stream(
        self, offset: int, length: int, *more: Range
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        assert not more
        yield self._pieces(offset, offset + length)

    async def _pieces(self, offset: int, end: int) -> AsyncIterator[bytes]:
        stall_at = self._store.stall_at
        for start in range(offset, end, PIECE_BYTES):
            await trio.lowlevel.checkpoint()
            if stall_at is not None and start >= stall_at:
                self._store.stalled.set()
                await trio.sleep_forever()
            yield self._raw[start : min(start + PIECE_BYTES, end)]
        if len(self._raw) < end:
            raise ContentError(f"{self.origin}: ends early")


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def tars(count: int = 2, size: int = 50_000) -> list[bytes]:
    """Tar layers of different content."""
    return [
        tar_layer({f"file{n}": bytes([n]) * size, "shared/name": b"layer %d" % n})
        for n in range(count)
    ]


def put_image(
    store: MemoryStore,
    layers: Sequence[Descriptor],
    diff_ids: Sequence[str],
    *,
    architecture: str = "amd64",
    manifest_type: str = OCI_MANIFEST,
    config_type: str = OCI_CONFIG,
    config: dict[str, Any] | None = None,
    annotations: dict[str, str] | None = None,
) -> Descriptor:
    """Write configuration and manifest; the manifest's descriptor, with a platform."""
    document = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        "history": [{"created_by": f"step {n}"} for n in range(len(diff_ids))],
    }
    raw_config = json.dumps(document | (config or {})).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": manifest_type,
        "config": as_json(store.put(raw_config, config_type)),
        "layers": [as_json(layer) for layer in layers],
        "annotations": annotations or {},
    }
    raw = json.dumps(manifest).encode()
    store.put(raw, manifest_type)
    return describe(raw, manifest_type)


def as_json(descriptor: Descriptor) -> dict[str, Any]:
    return {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size_bytes,
        "annotations": dict(descriptor.annotations),
    }


def put_tar_image(
    store: MemoryStore,
    layer_tars: Sequence[bytes],
    *,
    media_type: str = OCI_LAYER_TAR_GZIP,
    pack: Callable[[bytes], bytes] = lambda tar: gzip.compress(tar, mtime=0),
    **options: Any,
) -> Descriptor:
    """An image of tar layers."""
    layers = [store.put(pack(tar), media_type) for tar in layer_tars]
    return put_image(store, layers, [sha256(tar) for tar in layer_tars], **options)


def put_index(store: MemoryStore, entries: Sequence[dict[str, Any]], **fields: Any) -> Descriptor:
    """An index over entries as JSON."""
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)} | fields
    return store.put(json.dumps(index).encode(), OCI_INDEX)

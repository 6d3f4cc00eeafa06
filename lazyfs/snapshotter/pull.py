"""Pulls an image into containerd, telling the snapshotter what it needs for lazy layers.

``ctr`` of containerd 1.x tells snapshotters nothing of the image, and 1.x takes EROFS layers for no
layers at all. So the image's records are made here: content of manifest and configuration,
snapshots, the image. Layers that are not lazy are fetched, and unpacked by containerd.
"""

import datetime
import hashlib
import io
import secrets
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import trio

from lazyfs.errors import SourceUnavailableError, VerificationError
from lazyfs.resolve import (
    CONFIG_LIMIT_BYTES,
    ResolvedImage,
    fetch_diff_ids,
    resolve_image,
)
from lazyfs.snapshotter.client import Containerd
from lazyfs.snapshotter.model import IMAGE_NAMES, LAYER_DIGESTS, MANIFEST_DIGEST, TARGET
from registry.digest import Digest
from registry.errors import RegistryError
from registry.interfaces import Access, ImageSource
from registry.manifest import Descriptor
from registry.transports import open_source

LEASE_HOURS = 24
CONTENT_REFERENCE = "containerd.io/gc.ref.content"
SNAPSHOT_REFERENCE = "containerd.io/gc.ref.snapshot"
UNCOMPRESSED = "containerd.io/uncompressed"


@dataclass(frozen=True, slots=True)
class Pulled:
    """What became of an image."""

    name: str
    digest: str
    lazy: int
    unpacked: int
    there: int
    """Layers that had a snapshot already."""


@dataclass(slots=True)
class _Counts:
    lazy: int = 0
    unpacked: int = 0
    there: int = 0


async def pull(
    name: str,
    access: Access,
    platform: str | None,
    containerd: Containerd,
    snapshotter: str,
    show: Callable[[str], None],
) -> Pulled:
    """Have an image in containerd.

    Args:
        name: of an image in a registry.
        access: how to reach it.
        platform: which image of an index; None: this machine's.
        containerd: where to.
        snapshotter: by which snapshotter of it.
        show: told what becomes of each layer.

    Raises:
        LazyfsError.
    """
    try:
        async with open_source(name, access) as source:
            resolved = await resolve_image(source, platform)
            diff_ids = await fetch_diff_ids(source, resolved.manifest)
            lease = f"lazyfs-pull-{secrets.token_hex(8)}"
            with containerd.lease(lease, _expiry()):
                puller = _Puller(source, resolved, containerd, snapshotter, show)
                return await puller.pull(diff_ids)
    except RegistryError as error:
        raise SourceUnavailableError(str(error)) from error


def _expiry() -> str:
    """When a lease ends whose pull was killed (RFC 3339)."""
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=LEASE_HOURS)
    return end.strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True)
class _Puller:
    source: ImageSource
    resolved: ResolvedImage
    containerd: Containerd
    snapshotter: str
    show: Callable[[str], None]

    async def pull(self, diff_ids: tuple[Digest, ...]) -> Pulled:
        """Make all records, the image last."""
        manifest = self.resolved.manifest
        counts = _Counts()
        parent = ""
        for number, (layer, diff_id) in enumerate(zip(manifest.layers, diff_ids, strict=True), 1):
            chain = _chain(parent, diff_id)
            what = await self._layer(layer, diff_id, chain, parent, counts)
            self.show(f"layer {number} of {len(diff_ids)}: {what}")
            parent = chain
        config = await self.source.fetch_content(manifest.config, CONFIG_LIMIT_BYTES)
        references = {f"{SNAPSHOT_REFERENCE}.{self.snapshotter}": parent}
        await self._write(manifest.config, io.BytesIO(config), references)
        document = await self.source.fetch_manifest(self.resolved.descriptor)
        children = {f"{CONTENT_REFERENCE}.config": str(manifest.config.digest)} | {
            f"{CONTENT_REFERENCE}.l.{number}": str(layer.digest)
            for number, layer in enumerate(manifest.layers)
        }
        await self._write(self.resolved.descriptor, io.BytesIO(document), children)
        target = self.resolved.descriptor
        await trio.to_thread.run_sync(self.containerd.set_image, self.resolved.name, target)
        digest = str(target.digest)
        return Pulled(self.resolved.name, digest, counts.lazy, counts.unpacked, counts.there)

    async def _layer(
        self, layer: Descriptor, diff_id: Digest, chain: str, parent: str, counts: _Counts
    ) -> str:
        """Have a snapshot of a layer; how it came, for a person."""
        run = trio.to_thread.run_sync
        if await run(self.containerd.has_snapshot, self.snapshotter, chain):
            counts.there += 1
            return "there already"
        labels = {
            TARGET: chain,
            IMAGE_NAMES[0]: self.resolved.name,
            LAYER_DIGESTS[0]: str(layer.digest),
            MANIFEST_DIGEST: str(self.resolved.descriptor.digest),
        }
        key = f"extract-{secrets.token_hex(8)} {chain}"
        mounts = await run(self.containerd.prepare, self.snapshotter, key, parent, labels)
        if mounts is None:
            counts.lazy += 1
            return "lazy"
        try:
            await self._fetch(layer, diff_id)
            found = await run(self.containerd.apply, layer, mounts)
            if found != str(diff_id):
                raise VerificationError.of_digests(f"layer {layer.digest}", str(diff_id), found)
            await run(self.containerd.commit, self.snapshotter, chain, key, labels)
        except BaseException:
            with trio.CancelScope(shield=True):
                await run(self.containerd.remove_snapshot, self.snapshotter, key)
            raise
        counts.unpacked += 1
        return f"unpacked ({layer.media_type} is not lazy)"

    async def _fetch(self, layer: Descriptor, diff_id: Digest) -> None:
        with tempfile.TemporaryFile() as file:
            blob = await self.source.open_blob(layer)
            async with blob.stream(0, layer.size_bytes) as pieces:
                async for piece in pieces:
                    await trio.to_thread.run_sync(file.write, piece)
            file.seek(0)
            await self._write(layer, file, {UNCOMPRESSED: str(diff_id)})

    async def _write(self, what: Descriptor, data: BinaryIO, labels: Mapping[str, str]) -> None:
        await trio.to_thread.run_sync(self.containerd.write, what, data, labels)


def _chain(parent: str, diff_id: Digest) -> str:
    """The chain ID of a layer on its parent (image-spec, config.md, "Layer ChainID")."""
    if not parent:
        return str(diff_id)
    return "sha256:" + hashlib.sha256(f"{parent} {diff_id}".encode()).hexdigest()

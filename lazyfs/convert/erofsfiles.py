"""A local EROFS image as the source of a conversion: ``erofs:FILE[,device=FILE...]``.

The file becomes the only layer of an image without a command. Extra devices become layers with the
role ``device`` in front of it (EROFS image specification, sections 2.4 and 3.8): they stay as
they are, since the image has their addresses, and each is followed by a chunk index of its own
(section 3.4.3), so that readers fetch parts of them and can prove them.
"""

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

import trio

from lazyfs.convert.cutting import cut
from lazyfs.convert.images import open_temporary, write_at
from lazyfs.errors import ConversionError
from lazyfs.model import ByteRange
from lazyfs.seekable.chunkindex import encode_chunk_index
from lazyfs.seekable.mediatypes import CHUNK_INDEX_LAYER, SPEC_RAW_LAYER
from lazyfs.seekable.specannotations import ROLE, Role, SpecAnnotations
from registry.digest import Digest
from registry.errors import NotFoundError
from registry.files import PIECE_BYTES, FileRange, OpenFiles, read_content
from registry.health import HostStatus
from registry.jsondoc import Json, JsonObject, encode_json
from registry.manifest import MANIFEST_LIMIT_BYTES, Descriptor, Manifest, describe
from registry.mediatype import OCI_CONFIG, OCI_MANIFEST, OCTET_STREAM
from registry.platforms import Platform, encode_platform


@asynccontextmanager
async def open_erofs_files(
    name: str, paths: Sequence[str], platform: Platform, chunk_size_bytes: int
) -> AsyncIterator["ErofsFiles"]:
    """Look through the files, whose digests are wanted.

    Args:
        name: of the whole, for people.
        paths: the image, then its devices.
        platform: what the image is said to be for.
        chunk_size_bytes: of the chunks that devices are proven in.

    Raises:
        ConversionError: a device without a byte.
        RegistryError: a file cannot be read.
    """
    files = OpenFiles()
    small = open_temporary()
    try:
        source = ErofsFiles(name, small)
        image, *devices = paths
        for path in devices:
            await source.add_device(await _open(path, files), chunk_size_bytes)
        await source.add_image(await _open(image, files), platform)
        yield source
    finally:
        small.close()
        files.close()


async def _open(path: str, files: OpenFiles) -> FileRange:
    fd, size_bytes = await trio.to_thread.run_sync(files.open, Path(path))
    return FileRange(fd, 0, size_bytes, path)


class ErofsFiles:
    """The image that some files make (an ``ImageSource``)."""

    def __init__(self, name: str, small: BinaryIO) -> None:
        """Begin without any layer; what is made for the files goes to ``small``."""
        self._name = name
        self._small = small
        self._small_bytes = 0
        self._layers: list[Descriptor] = []
        self._blobs: dict[Digest, FileRange] = {}
        self._manifest: Descriptor | None = None

    async def add_device(self, file: FileRange, chunk_size_bytes: int) -> None:
        """Take the next device."""
        if not file.size_bytes:
            raise ConversionError(f"{file.origin}: an empty file cannot be a device")
        digest, checksums = await _look_through(file, chunk_size_bytes)
        offsets = range(0, file.size_bytes, chunk_size_bytes)
        index = encode_chunk_index(
            content_size_bytes=file.size_bytes,
            content_offsets=offsets,
            frame_offsets=offsets,
            checksums=checksums,
            compressed=False,
        )
        target = SpecAnnotations(index_target=str(digest)).encode()
        self._add_file(file, digest, OCTET_STREAM, {ROLE: Role.DEVICE.value})
        self._layers.append(self._add(index, CHUNK_INDEX_LAYER).annotated(target))

    async def add_image(self, file: FileRange, platform: Platform) -> None:
        """Take the image, and complete the documents."""
        digest, _ = await _look_through(file, PIECE_BYTES)
        self._add_file(file, digest, SPEC_RAW_LAYER, {})
        diff_ids: list[Json] = [str(layer.digest) for layer in self._layers]
        rootfs: JsonObject = {"type": "layers", "diff_ids": diff_ids}
        config = encode_json({**encode_platform(platform), "config": {}, "rootfs": rootfs})
        described = self._add(config, OCI_CONFIG)
        manifest = Manifest(media_type=OCI_MANIFEST, config=described, layers=tuple(self._layers))
        self._manifest = self._add(manifest.encode(), OCI_MANIFEST)

    @property
    def name(self) -> str:
        """As ``ImageSource.name``."""
        return self._name

    async def resolve(self) -> Descriptor:
        """As ``ImageSource.resolve``."""
        if self._manifest is None:
            raise AssertionError("the image comes last")
        return self._manifest

    async def fetch_manifest(self, descriptor: Descriptor) -> bytes:
        """As ``ImageSource.fetch_manifest``."""
        return await self.fetch_content(descriptor, MANIFEST_LIMIT_BYTES)

    async def fetch_content(self, descriptor: Descriptor, limit_bytes: int) -> bytes:
        """As ``ImageSource.fetch_content``."""
        return await read_content(await self.open_blob(descriptor), descriptor, limit_bytes)

    async def open_blob(self, descriptor: Descriptor) -> FileRange:
        """As ``ImageSource.open_blob``."""
        try:
            return self._blobs[descriptor.digest]
        except KeyError:
            raise NotFoundError(f"{self._name}: no {descriptor.digest}", status=404) from None

    def hosts(self) -> tuple[HostStatus, ...]:
        """As ``ImageSource.hosts``."""
        return ()

    def _add(self, raw: bytes, media_type: str) -> Descriptor:
        described = describe(raw, media_type)
        start = self._small_bytes
        write_at(self._small, start, raw)
        self._small_bytes += len(raw)
        place = FileRange(self._small.fileno(), start, len(raw), self._name)
        self._blobs[described.digest] = place
        return described

    def _add_file(
        self, file: FileRange, digest: Digest, media_type: str, annotations: dict[str, str]
    ) -> None:
        self._blobs[digest] = file
        self._layers.append(Descriptor(media_type, digest, file.size_bytes, annotations))


async def _look_through(file: FileRange, chunk_size_bytes: int) -> tuple[Digest, list[bytes]]:
    """The digest of a file, and those of its chunks."""
    whole, checksums = hashlib.sha256(), []

    def look(where: ByteRange) -> bytes:
        chunk = file.read(*where)
        whole.update(chunk)
        return hashlib.sha256(chunk).digest()

    for where in cut(file.size_bytes, (), chunk_size_bytes):
        checksums += [await trio.to_thread.run_sync(look, where)]
    return Digest("sha256", whole.hexdigest()), checksums

"""Copies an image from a source to a destination, as a converter would."""

from registry.interfaces import ImageDestination, ImageSource
from registry.manifest import Descriptor, Index, decode


async def copy_image(source: ImageSource, destination: ImageDestination) -> Descriptor:
    """Copy what the source means (an index with all that it names) and tag it."""
    descriptor = await source.resolve()
    await _copy(descriptor, source, destination)
    await destination.tag(descriptor, await source.fetch_manifest(descriptor))
    return descriptor


async def _copy(descriptor: Descriptor, source: ImageSource, destination: ImageDestination) -> None:
    raw = await source.fetch_manifest(descriptor)
    document = decode(raw, descriptor.media_type)
    if isinstance(document, Index):
        for entry in document.manifests:
            await _copy(entry, source, destination)
    else:
        for blob in (document.config, *document.layers):
            await copy_blob(blob, source, destination)
    await destination.push_manifest(raw, descriptor)


async def copy_blob(blob: Descriptor, source: ImageSource, destination: ImageDestination) -> None:
    if await destination.mount_blob(blob, source):
        return
    reader = await source.open_blob(blob)

    async def data():
        async with reader.stream(0, reader.size_bytes) as pieces:
            async for piece in pieces:
                yield piece

    await destination.push_blob(blob, data)


async def read_image(source: ImageSource) -> tuple[bytes, bytes, list[bytes]]:
    """The raw manifest, the configuration and the layers of a single image."""
    descriptor = await source.resolve()
    raw = await source.fetch_manifest(descriptor)
    manifest = decode(raw, descriptor.media_type)
    assert not isinstance(manifest, Index)
    config = await source.fetch_content(manifest.config, 1 << 20)
    readers = [await source.open_blob(layer) for layer in manifest.layers]
    return raw, config, [await reader.fetch(0, reader.size_bytes) for reader in readers]

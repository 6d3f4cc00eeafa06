"""Opens the image that a name means, wherever it lies.

async with open_source("oci:app:latest") as source:
    descriptor = await source.resolve()
    manifest = decode(await source.fetch_manifest(descriptor), descriptor.media_type)
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from registry.interfaces import DEFAULT_ACCESS, Access, ImageDestination, ImageSource
from registry.reference import Reference, parse_image_name


@asynccontextmanager
async def open_source(name: str, access: Access = DEFAULT_ACCESS) -> AsyncIterator[ImageSource]:
    """The image of that name, for reading.

    A registry is not asked for anything before the first method is called.

    Raises:
        RegistryError: the name breaks the grammar, or a local file cannot be read.
    """
    parsed = parse_image_name(name)
    if isinstance(parsed, Reference):
        # Only now: an HTTP client takes long to import, and local images need none.
        from registry.remote import open_client
        from registry.source import RegistrySource

        async with open_client(parsed, access) as client:
            yield RegistrySource(client)
        return
    from registry.localimages import open_local_source

    async with open_local_source(parsed) as source:
        yield source


@asynccontextmanager
async def open_destination(
    name: str, access: Access = DEFAULT_ACCESS
) -> AsyncIterator[ImageDestination]:
    """The image of that name, for writing.

    An archive is written when the block ends without an exception; otherwise nothing is left of
    it. A layout folder keeps the blobs that were pushed, whatever happens.

    Raises:
        RegistryError: the name breaks the grammar, or cannot be written.
    """
    parsed = parse_image_name(name)
    if isinstance(parsed, Reference):
        from registry.push import RegistryDestination
        from registry.remote import open_client

        async with open_client(parsed, access) as client:
            yield RegistryDestination(client)
        return
    from registry.localimages import open_local_destination

    async with open_local_destination(parsed, access.timeout_s) as destination:
        yield destination

"""Opens the image that a name means, wherever it lies.

async with open_source("oci:app:latest") as source:
    descriptor = await source.resolve()
    manifest = decode(await source.fetch_manifest(descriptor), descriptor.media_type)
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from registry.archive import ArchiveMembers, open_archive_destination
from registry.docker_archive import DockerArchiveSource
from registry.errors import InvalidReferenceError
from registry.files import FolderMembers, OpenFiles
from registry.interfaces import DEFAULT_ACCESS, Access, ImageDestination, ImageSource
from registry.layout import LayoutDestination, LayoutSource
from registry.reference import LocalName, Reference, Transport, parse_image_name


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
    files = OpenFiles()
    try:
        yield await _open_local(parsed, _absolute(parsed), files)
    finally:
        files.close()


async def _open_local(name: LocalName, path: Path, files: OpenFiles) -> ImageSource:
    if name.transport is Transport.OCI:
        return LayoutSource(name, FolderMembers(path, files))
    members = await ArchiveMembers.read(path, files)
    if name.transport is Transport.OCI_ARCHIVE:
        return LayoutSource(name, members)
    return DockerArchiveSource(name, members)


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
    elif parsed.transport is Transport.OCI:
        destination = LayoutDestination(parsed, _absolute(parsed), access.timeout_s)
        await trio.to_thread.run_sync(destination.prepare)
        yield destination
    elif parsed.transport is Transport.OCI_ARCHIVE:
        target = _absolute(parsed)
        async with open_archive_destination(parsed, target, access.timeout_s) as archive:
            yield archive
    else:
        raise InvalidReferenceError(
            f"{parsed}: a Docker archive can only be read; use oci-archive:"
        )


def _absolute(name: LocalName) -> Path:
    """The path as it is meant now: the working directory may change while the image is open."""
    return Path(name.path).absolute()

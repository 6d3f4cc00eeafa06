"""Images in folders and archives, for reading and for writing.

Apart from ``transports``, which imports this only for them: an image in a registry needs none of
it, and start-up is part of mount time.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from registry.archive import ArchiveMembers, open_archive_destination
from registry.docker_archive import DockerArchiveSource
from registry.errors import InvalidReferenceError
from registry.files import FolderMembers, OpenFiles
from registry.interfaces import ImageDestination, ImageSource
from registry.layout import LayoutDestination, LayoutSource
from registry.reference import LocalName, Transport


@asynccontextmanager
async def open_local_source(name: LocalName) -> AsyncIterator[ImageSource]:
    """See ``transports.open_source``."""
    files = OpenFiles()
    try:
        yield await _source(name, _absolute(name), files)
    finally:
        files.close()


async def _source(name: LocalName, path: Path, files: OpenFiles) -> ImageSource:
    if name.transport is Transport.OCI:
        return LayoutSource(name, FolderMembers(path, files))
    members = await ArchiveMembers.read(path, files)
    if name.transport is Transport.OCI_ARCHIVE:
        return LayoutSource(name, members)
    return DockerArchiveSource(name, members)


@asynccontextmanager
async def open_local_destination(
    name: LocalName, timeout_s: float
) -> AsyncIterator[ImageDestination]:
    """See ``transports.open_destination``."""
    if name.transport is Transport.OCI:
        destination = LayoutDestination(name, _absolute(name), timeout_s)
        await trio.to_thread.run_sync(destination.prepare)
        yield destination
    elif name.transport is Transport.OCI_ARCHIVE:
        async with open_archive_destination(name, _absolute(name), timeout_s) as archive:
            yield archive
    else:
        raise InvalidReferenceError(f"{name}: a Docker archive can only be read; use oci-archive:")


def _absolute(name: LocalName) -> Path:
    """The path as it is meant now: the working directory may change while the image is open."""
    return Path(name.path).absolute()

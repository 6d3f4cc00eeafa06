"""A mount's first question, asked while the rest of its daemon is still being imported.

What a tag means only its registry can say. To ask it takes an HTTP client, half of what a daemon
imports. The other half takes longer than a near registry's answer.
"""

import gc
import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from lazyfs.localname import STORE_SCHEME, parse_local_image
from lazyfs.mount.request import MountRequest
from registry.errors import RegistryError
from registry.interfaces import ImageSource
from registry.reference import Reference, parse_image_name

MEANWHILE = (
    "lazyfs.erofs.image",
    "lazyfs.verity.trusted",
    "lazyfs.seekable.tables",
    "cache.steady",
    "lazyfs.layer.open",
    "lazyfs.image.merged",
    "lazyfs.mount.report",
    "lazyfs.mount.openers",
    "lazyfs.fuse.server",
    "lazyfs.mount.daemon",
)
"""What a daemon needs, in portions of some milliseconds."""


@asynccontextmanager
async def asked_ahead(
    request: MountRequest, nursery: trio.Nursery
) -> AsyncIterator[ImageSource | None]:
    """The source of an image whose tag has just been asked about; None: there is nothing to ask.

    Args:
        request: what to mount.
        nursery: waits for the answer.
    """
    reference = asked_about(request.image)
    if reference is None:
        yield None
        return
    from registry.remote import open_client
    from registry.source import RegistrySource

    async with open_client(reference, request.options.access()) as client:
        source = RegistrySource(client)
        source.resolve_ahead(nursery)
        yield source


def asked_about(name: str) -> Reference | None:
    """The name of an image, if it is one of which only a registry can say what it means."""
    if parse_local_image(name) is not None or name.startswith(STORE_SCHEME):
        return None
    try:
        parsed = parse_image_name(name)
    except RegistryError:
        return None  # who opens it says what is wrong
    return parsed if isinstance(parsed, Reference) and parsed.digest is None else None


async def import_meanwhile() -> None:
    """Import what a daemon needs, with a look after the answer between the portions.

    What is there in the end is garbage never, and not looked at for that.
    """
    gc.disable()  # nothing of it is garbage
    try:
        for module in MEANWHILE:
            await trio.lowlevel.checkpoint()
            importlib.import_module(module)
    finally:
        gc.freeze()
        gc.enable()

"""What an image says about its containers, and exactly which image said it."""

import math
from typing import NamedTuple

import trio

from lazyfs.documents import KeptSource
from lazyfs.errors import RunError, SourceUnavailableError
from lazyfs.localname import parse_local_image
from lazyfs.mount.assemble import open_chunk_store
from lazyfs.mount.options import MountOptions
from lazyfs.resolve import CONFIG_LIMIT_BYTES, pin_of, resolve_image
from lazyfs.run.spec import ImageConfig, parse_config
from registry.errors import RegistryError
from registry.jsondoc import parse_object
from registry.transports import open_source


class Described(NamedTuple):
    """An image's configuration."""

    config: ImageConfig
    pin: str | None
    """For ``MountOptions.pin``, so that what is mounted is what was asked about."""


async def describe(name: str, options: MountOptions) -> Described:
    """Ask about an image; the mount that follows finds the answers kept.

    Raises:
        SourceUnavailableError: it cannot be had.
        RunError: its configuration is broken.
    """
    if parse_local_image(name) is not None:
        return Described(ImageConfig(), None)
    try:
        async with (
            open_chunk_store(options) as (_, documents),
            open_source(name, options.access()) as remote,
        ):
            source = KeptSource(remote, documents)
            with trio.fail_after(options.timeout_s or math.inf):
                resolved = await resolve_image(source, options.platform)
                raw = await source.fetch_content(resolved.manifest.config, CONFIG_LIMIT_BYTES)
            document = parse_object(raw, "configuration", CONFIG_LIMIT_BYTES)
            return Described(parse_config(document), pin_of(resolved))
    except RegistryError as error:
        raise SourceUnavailableError(str(error)) from error
    except trio.TooSlowError as error:
        raise RunError(f"{name}: no answer within {options.timeout_s:g} s") from error

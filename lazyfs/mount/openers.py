"""What a daemon serves, by the name in its request: an image, or the folder of a store."""

from contextlib import AbstractAsyncContextManager

from lazyfs.localname import STORE_SCHEME
from lazyfs.mount.assemble import open_image
from lazyfs.mount.mountedimage import MountedImage
from lazyfs.mount.options import MountOptions
from registry.interfaces import ImageSource


def open_named(
    name: str, options: MountOptions, source: ImageSource | None = None
) -> AbstractAsyncContextManager[MountedImage]:
    """Open what ``name`` means, by ``source`` if that was opened before; an ``ImageOpener``."""
    if name.startswith(STORE_SCHEME):
        from lazyfs.mount.storefolder import open_store  # only now: images need none of it

        return open_store(name, options)
    return open_image(name, options, source)

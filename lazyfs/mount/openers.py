"""What a daemon serves, by the name in its request: an image, or the folder of a store."""

from contextlib import AbstractAsyncContextManager

from lazyfs.mount.assemble import open_image
from lazyfs.mount.mountedimage import MountedImage
from lazyfs.mount.options import MountOptions
from lazyfs.mount.storefolder import STORE_SCHEME, open_store


def open_named(name: str, options: MountOptions) -> AbstractAsyncContextManager[MountedImage]:
    """Open what ``name`` means; an ``ImageOpener``."""
    if name.startswith(STORE_SCHEME):
        return open_store(name, options)
    return open_image(name, options)

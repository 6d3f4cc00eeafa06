"""What the daemon wants of an opened image."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias

from lazyfs.interfaces import ImageTree
from lazyfs.mount.figures import Figures
from lazyfs.mount.options import MountOptions
from lazyfs.store.layers import LayerFiles


class MountedImage(Protocol):
    """An opened image: the tree to serve and what is known about it."""

    @property
    def tree(self) -> ImageTree:
        """What FUSE serves."""
        ...

    @property
    def layer_files(self) -> LayerFiles | None:
        """The layers as files for the kernel's EROFS; None: there is nothing of the kind."""
        ...

    @property
    def pin(self) -> str:
        """Names exactly this image, whatever its name may mean later: for ``MountOptions.pin``."""
        ...

    async def status(self) -> dict[str, object]:
        """What ``lazyfs status`` shows, ready for JSON."""
        ...

    async def explain(self, path: bytes) -> dict[str, object]:
        """What ``lazyfs explain`` shows of a path from the root, ready for JSON; ends soon."""
        ...

    async def reads(self) -> dict[str, object]:
        """Which blocks were read, for ``lazyfs profile``, ready for JSON."""
        ...

    def figures(self) -> Figures:
        """What metrics are made of; quick."""
        ...


ImageOpener: TypeAlias = Callable[[str, MountOptions], AbstractAsyncContextManager[MountedImage]]
"""Opens the image of a name; ``lazyfs.mount.assemble.open_image`` is the one of the program.

What it logs as a warning is shown to who mounts, and so are the ``notes`` of its layers.
"""

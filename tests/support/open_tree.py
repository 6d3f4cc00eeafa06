"""An image opened as a mount opens it, read without FUSE."""

import stat
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from lazyfs.inspect import walk
from lazyfs.interfaces import ImageTree
from lazyfs.model import VerifyMode
from lazyfs.mount.assemble import open_image
from lazyfs.mount.options import MountOptions

ALL = 1 << 30


class OpenedTree:
    """The tree of an image and its status."""

    def __init__(self, tree: ImageTree, layers: list[dict[str, Any]]) -> None:
        self.tree = tree
        self.layers = layers
        """What ``lazyfs status`` says of each."""

    async def files(self) -> dict[str, bytes]:
        """All regular files."""
        found = {}
        async with aclosing(walk(self.tree)) as entries:
            async for path, node, attributes in entries:
                if stat.S_ISREG(attributes.mode):
                    found[path.decode()] = await self.tree.read(node, 0, ALL)
        return found

    async def names(self) -> set[str]:
        async with aclosing(walk(self.tree)) as entries:
            return {path.decode() async for path, _, _ in entries}


@asynccontextmanager
async def opened_tree(
    name: str, cache: Path, verify: VerifyMode = VerifyMode.ALWAYS
) -> AsyncIterator[OpenedTree]:
    options = MountOptions(cache_dir=cache, verify=verify, platform="linux/amd64")
    async with open_image(name, options) as opened:
        layers = (await opened.status())["layers"]
        assert isinstance(layers, list)
        assert opened.figures().size_bytes == sum(layer["size_bytes"] for layer in layers)
        yield OpenedTree(opened.tree, layers)

"""List the files of an image without mounting it.

usage: python examples/list_image.py oci:images/app:1.2

Shows how the parts fit together: ``open_image`` gives an ``ImageTree``, which FUSE would
serve; here a loop asks it instead. Only the metadata is fetched.
"""

import stat
import sys

import trio

from lazyfs.inspect import walk
from lazyfs.mount.assemble import open_image
from lazyfs.mount.options import MountOptions


async def main(name: str) -> None:
    """Print mode, size and path of everything in the image."""
    async with open_image(name, MountOptions()) as image:
        async for path, _, attributes in walk(image.tree):
            mode = stat.filemode(attributes.mode)
            print(f"{mode} {attributes.size_bytes:>12} /{path.decode('utf-8', 'backslashreplace')}")


if __name__ == "__main__":
    trio.run(main, sys.argv[1])

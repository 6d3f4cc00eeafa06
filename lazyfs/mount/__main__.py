"""``python -m lazyfs.mount``: the daemon in the background; users say ``lazyfs mount``."""

import sys

from lazyfs.mount.assemble import open_image
from lazyfs.mount.background import main

if __name__ == "__main__":
    sys.exit(main(open_image))

"""What files take of the disk; blocking."""

import os
import stat
from pathlib import Path

from lazyfs.snapshotter.model import Usage


def tree_usage(root: Path) -> Usage:
    """Blocks and inodes below a folder and its own; a file with several names counts once.

    Raises:
        FileNotFoundError: there is no such folder. (What goes meanwhile is left out.)
    """
    own = root.stat()
    size = own.st_blocks * 512
    seen = {own.st_ino}
    folders = [os.fspath(root)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    if status.st_ino not in seen:
                        seen.add(status.st_ino)
                        size += status.st_blocks * 512
                    if stat.S_ISDIR(status.st_mode):
                        folders.append(entry.path)
        except FileNotFoundError:
            continue
    return Usage(size, len(seen))

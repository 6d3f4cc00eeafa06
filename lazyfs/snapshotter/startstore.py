"""Starts the store's daemon: a short-lived process, since that takes a main thread.

``python -m lazyfs.snapshotter.startstore DIRECTORY OPTIONS``, options as ``MountOptions.to_json``.
"""

import os
import sys
import time

from lazyfs.errors import LazyfsError
from lazyfs.localname import STORE_SCHEME
from lazyfs.mount.mountpoint import prepare
from lazyfs.mount.options import MountOptions
from lazyfs.mount.request import MountRequest
from lazyfs.mount.runtime import MountState, base_folder, create_folder, sweep
from lazyfs.mount.start import start_in_background


def main() -> int:
    """Start it; 0 once it can be used."""
    directory, options = sys.argv[1], MountOptions.from_json(sys.argv[2])
    try:
        sweep()
        mountpoint, _ = prepare(directory, (options.cache_dir, base_folder()), create=True)
        image = STORE_SCHEME + mountpoint
        folder, lock = create_folder(MountState(mountpoint, image, os.getpid(), time.time()))
        try:
            request = MountRequest(image, mountpoint, options, folder)
            start_in_background(request, lock, show=_show)
        finally:
            os.close(lock)
    except (LazyfsError, OSError) as error:
        _show(str(error))
        return 1
    return 0


def _show(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201 - read by who started us


if __name__ == "__main__":
    sys.exit(main())

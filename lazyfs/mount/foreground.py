"""Serving a mount in the process of the command."""

from collections.abc import Callable

import trio

from lazyfs.mount.assemble import open_image
from lazyfs.mount.daemon import raise_file_limit, serve_mount
from lazyfs.mount.life import Custody, End
from lazyfs.mount.request import MountRequest
from lazyfs.mount.supervision import HANDED_OVER


def serve_in_foreground(
    request: MountRequest, show: Callable[[str], None], custody: Custody
) -> int:
    """Serve until a signal or until somebody unmounts; return the exit status.

    Raises:
        MountError: it could not be mounted.
        KeyboardInterrupt: a signal came before there was a mount.
        Whatever opening the image raises.
    """

    def announce() -> None:
        show(f"serving {request.image} on {request.mountpoint}; Ctrl-C unmounts")

    raise_file_limit()
    end = trio.run(serve_mount, request, open_image, announce, custody)
    if end is End.UNBORN:
        raise KeyboardInterrupt
    return HANDED_OVER if end is End.HANDED_OVER else 0

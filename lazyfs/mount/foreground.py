"""Serving a mount in the process of the command."""

from collections.abc import Callable

import trio

from lazyfs.fuse.errno_table import first_cause
from lazyfs.mount.daemon import serve_mount
from lazyfs.mount.life import EXIT_STATUS, Custody, End
from lazyfs.mount.openers import open_named
from lazyfs.mount.request import MountRequest
from lazyfs.mount.service import Service
from lazyfs.mount.tuning import tune_process


def serve_in_foreground(
    request: MountRequest, show: Callable[[str], None], service: Service
) -> int:
    """Serve until a signal or until somebody unmounts; return the exit status.

    Raises:
        MountError: it could not be mounted.
        KeyboardInterrupt: a signal came before there was a mount.
        Whatever opening the image raises.
    """

    def announce() -> None:
        show(f"serving {request.image} on {request.mountpoint}; Ctrl-C unmounts")

    tune_process()
    device = None if service.taken_over is None else service.taken_over.device
    try:
        end = trio.run(serve_mount, request, open_named, announce, Custody(service.keeper, device))
    except Exception as error:
        if service.keeper is not None:
            service.keeper.status(str(first_cause(error)))
        raise
    if end is End.UNBORN:
        raise KeyboardInterrupt
    return EXIT_STATUS.get(end, 0)

"""Failing requests that no daemon survives, so that the mount survives them."""

import errno
import fcntl
import os

from lazyfs.fuse.protocol import (
    IN_HEADER,
    MIN_BUFFER_BYTES,
    OUT_HEADER,
    UNIQUE_RESENT,
    encode_resend,
)

MAX_REFUSED = 10_000
"""Requests that are looked at; there are no more under way than the kernel allows."""


def refuse_resent(device: int) -> int:
    """Answer ``EIO`` to all requests that daemons have read but not answered; how many.

    Nobody may serve ``device`` meanwhile. Requests that were not read before stay for the next
    daemon, which asks for them again.

    Raises:
        OSError: the mount is gone.
    """
    os.write(device, encode_resend())
    flags = fcntl.fcntl(device, fcntl.F_GETFL)
    fcntl.fcntl(device, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    refused = 0
    try:
        for _ in range(MAX_REFUSED):
            _, _, unique, *_ = IN_HEADER.unpack_from(os.read(device, MIN_BUFFER_BYTES))
            if unique & UNIQUE_RESENT:
                os.write(device, OUT_HEADER.pack(OUT_HEADER.size, -errno.EIO, unique))
                refused += 1
    except BlockingIOError:
        pass
    finally:
        fcntl.fcntl(device, fcntl.F_SETFL, flags)
    return refused

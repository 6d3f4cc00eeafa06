"""Serving a FUSE connection that somebody else began, with pyfuse3 as it is.

libfuse takes a descriptor instead of a mountpoint (``/dev/fd/N``), but wants to see INIT on it.
So it gets one end of a socket pair and an INIT from us. While it handles that, it is in our
hands (``Operations.init``), and nobody waits for the descriptor: there the device is put in
the socket's place. libfuse's answer to our INIT then goes to the device, which knows of no such
request and says ``ENOENT``; that is what a request withdrawn meanwhile looks like, and libfuse
passes over it. From there on it serves the real connection.

That is more than libfuse promises. So it is done only with versions whose source was read, and
after a rehearsal with a socket in the device's place (``obstacle``).
"""

import contextlib
import ctypes
import functools
import os
import socket
from collections.abc import Iterator

import pyfuse3
import trio

from lazyfs.errors import MountError
from lazyfs.fuse.errno_table import first_cause
from lazyfs.fuse.protocol import (
    MIN_BUFFER_BYTES,
    ROOT,
    STATFS_OPCODE,
    decode_reply,
    encode_init_for_libfuse,
    encode_request,
    encode_resend,
)

PLAIN_VARIABLE = "LAZYFS_PLAIN_MOUNT"
"""Set in the environment to anything but nothing, it has libfuse make the mount."""

OLDEST, NEWEST = (3, 10), (3, 18)
"""Versions of libfuse whose source was read for this; 3.14 is what it was tried with."""

INIT_UNIQUE = 1 << 62
"""Number of the INIT for libfuse. The kernel counts its requests from 2 up, by 2; bit 63 it gives
to those that it sends again, and 0 would mean a notification."""

STATFS_UNIQUE = 2
REHEARSAL_WITHIN_S = 5.0


class Adoptable(pyfuse3.Operations):
    """Operations that can be put before a connection which others began."""

    def __init__(self) -> None:
        super().__init__()
        self._device: int | None = None
        self._socket = -1

    def init(self) -> None:
        """Put the device in the place of the socket, if there is one waiting."""
        if self._device is not None:
            os.dup2(self._device, self._socket, inheritable=False)
            self._device = None

    @contextlib.contextmanager
    def adopted(self, device: int) -> Iterator[None]:
        """Have pyfuse3 serve ``device``, whose INIT was answered.

        Whoever closes it: the caller's descriptor stays the caller's. Leaving the block neither
        unmounts nor ends the connection.

        Raises:
            MountError: libfuse does not take it.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            self._device, self._socket = device, theirs.detach()
            try:
                pyfuse3.init(self, f"/dev/fd/{self._socket}", set())
            except RuntimeError as error:
                os.close(self._socket)
                raise MountError(f"libfuse does not take the mount over: {error}") from error
            try:
                ours.send(encode_init_for_libfuse(INIT_UNIQUE))
                yield
            finally:
                pyfuse3.close(unmount=False)


def request_again(device: int) -> None:
    """Have the kernel give all requests again that a dead daemon had read.

    Raises:
        OSError: the kernel does not know how, or the mount is gone.
    """
    os.write(device, encode_resend())


def libfuse_version() -> tuple[int, int]:
    """Major and minor version of the libfuse that pyfuse3 uses; (0, 0) if it cannot be told."""
    try:
        number = int(ctypes.CDLL(pyfuse3.__file__).fuse_version())
    except (OSError, AttributeError):
        return 0, 0
    return divmod(number, 100)


async def obstacle() -> str | None:
    """Why this process cannot serve a connection that others began; None if it can."""
    if os.environ.get(PLAIN_VARIABLE):
        return f"{PLAIN_VARIABLE} is set"
    version = libfuse_version()
    if not OLDEST <= version <= NEWEST:
        return (
            f"libfuse {version[0]}.{version[1]} has not been tried "
            f"({OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]} have)"
        )
    try:
        with trio.fail_after(REHEARSAL_WITHIN_S):
            await _rehearse()
    except Exception as error:  # noqa: BLE001 - whatever it is, a plain mount is the answer
        cause = first_cause(error)
        return f"libfuse failed the rehearsal: {type(cause).__name__}: {cause}"
    return None


async def _rehearse() -> None:
    """Adopt a socket instead of the device, and have a request answered through it.

    Raises:
        MountError, OSError, trio.TooSlowError: it does not work as it should.
    """
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stage = _Stage()
    with kernel, device, stage.adopted(device.fileno()):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(pyfuse3.main, min_tasks=1, max_tasks=2))
            await _expect(kernel, INIT_UNIQUE)
            kernel.send(encode_request(STATFS_OPCODE, STATFS_UNIQUE, ROOT))
            await _expect(kernel, STATFS_UNIQUE)
            pyfuse3.terminate()


async def _expect(kernel: socket.socket, unique: int) -> None:
    await trio.lowlevel.wait_readable(kernel)
    reply = decode_reply(kernel.recv(MIN_BUFFER_BYTES))
    if reply.unique != unique or reply.error:
        raise MountError(f"wanted an answer to request {unique}, got {reply}")


class _Stage(Adoptable):
    """Answers nothing but ``statfs``."""

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Any answer will do."""
        return pyfuse3.StatvfsData()

"""The driver ``kernel``: the kernel's own EROFS and overlayfs over layers that we serve as files.

``docs/drivers.md`` compares it with ``fuse``, where we serve the files of the image ourselves.
"""

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import trio

from lazyfs.errors import MountError
from lazyfs.fuse.kernelmount import MountChoice
from lazyfs.mount.mountedimage import MountedImage
from lazyfs.mount.options import FUSE, KERNEL, MountOptions
from lazyfs.mount.request import MountRequest
from lazyfs.mount.stacker import StackRequest
from lazyfs.mount.tuning import READ_AHEAD_KB
from lazyfs.newmount import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY
from lazyfs.store.layers import LayerFiles

STACKER_COMMAND = (
    *(sys.executable, "-I", "-S"),  # it needs nothing but the standard library and itself
    os.fspath(Path(__file__).with_name("stacker.py")),
)

log = logging.getLogger(__name__)


class KernelDriverError(MountError):
    """The kernel does not mount the image; FUSE may."""


class Stacker:
    """The process that puts layers together; it may start up while there are none yet."""

    def __init__(self) -> None:
        """Start it.

        Raises:
            OSError: it cannot be started.
        """
        self._at_work = False
        self._line, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                STACKER_COMMAND,
                stdin=theirs.fileno(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",
            )

    def work(self, wanted: StackRequest, folder_mount: int) -> tuple[int, bytes, bytes]:
        """Have it do its work (blocks): exit status, what it prints, what it says went wrong.

        Raises:
            OSError: it has died.
        """
        self._at_work = True
        with self._line:
            socket.send_fds(self._line, [wanted.to_json().encode()], [folder_mount])
        printed, said = self._process.communicate()
        return self._process.returncode, printed, said

    def end(self) -> None:
        """Make sure that it ends."""
        self._line.close()
        self._process.kill()
        if not self._at_work and self._process.returncode is None:
            self._process.communicate()  # at work it may wait for an answer of ours: not for that


@contextmanager
def stacker_ahead(options: MountOptions) -> Iterator[Stacker | None]:
    """The process that will put the layers together, if they may be; it ends with the block."""
    stacker = None
    if options.driver != FUSE and os.geteuid() == 0 and not options.layers and not options.pin:
        stacker = Stacker()
    try:
        yield stacker
    finally:
        if stacker is not None:
            stacker.end()


class Driver(NamedTuple):
    """What serves the files of a mount."""

    name: str
    why: str


def choose(options: MountOptions, image: MountedImage) -> Driver:
    """The driver for an image.

    Args:
        options: what the user wants.
        image: what is to be mounted.

    Raises:
        MountError: the wanted one cannot be had.
    """
    if options.driver == FUSE:
        return Driver(FUSE, "as asked, or by default")
    obstacle = _obstacle(options, image)
    if obstacle is None:
        why = "asked for" if options.driver == KERNEL else "root, and the kernel can mount EROFS"
        return Driver(KERNEL, why)
    if options.driver == KERNEL:
        raise MountError(f"the kernel driver cannot be used: {obstacle}")
    return Driver(FUSE, f"the kernel driver cannot be used: {obstacle}")


def _obstacle(options: MountOptions, image: MountedImage) -> str | None:
    """Why the kernel driver cannot be used for an image; None if it may be tried."""
    files = image.layer_files
    if os.geteuid() != 0:
        return "only root may mount EROFS"
    if files is None:
        return "it has no layers"
    if options.layers:
        return "it puts layers together, and --layers wants them apart"
    return files.obstacle  # whether the kernel knows EROFS, it says when it is asked to mount


async def stack(
    stacker: Stacker,
    request: MountRequest,
    choice: MountChoice,
    files: LayerFiles,
    folder_mount: int,
) -> dict[str, str]:
    """Have the kernel put the layers together on the mountpoint; the daemon serves meanwhile.

    Args:
        stacker: does it.
        request: where.
        choice: how.
        files: what the daemon serves.
        folder_mount: descriptor of that mount; it is closed.

    Returns:
        The loop devices that were needed, by the names of the layer files.

    Raises:
        KernelDriverError: it does not; nothing is left of it.
    """
    wanted = StackRequest(
        workshop=os.fspath(request.folder.path),
        layers=files.names,
        source=choice.fsname,
        mountpoint=request.mountpoint,
        attributes=MOUNT_ATTR_RDONLY
        | (0 if choice.suid else MOUNT_ATTR_NOSUID)
        | (0 if choice.dev else MOUNT_ATTR_NODEV),
        read_ahead_kb=READ_AHEAD_KB,
        gaps=[any(files.readers[name].has_gaps() for name in names) for names in files.names],
        loop=request.options.promote,
    )
    timeout_s = request.options.timeout_s
    try:
        with trio.fail_after(2 * timeout_s if timeout_s else float("inf")):
            status, printed, said = await trio.to_thread.run_sync(
                partial(stacker.work, wanted, folder_mount), abandon_on_cancel=True
            )
    except trio.TooSlowError:
        raise KernelDriverError("the kernel did not mount the layers in time") from None
    except OSError as error:
        raise KernelDriverError(f"the layers could not be mounted: {error}") from error
    finally:
        stacker.end()
        os.close(folder_mount)
    if status:
        lines = said.decode(errors="replace").strip().splitlines()
        why = lines[-1] if lines else f"status {status}"
        raise KernelDriverError(f"the kernel does not mount the layers: {why}")
    log.info("the kernel has mounted %d layers", len(files.names))
    loops: dict[str, str] = json.loads(printed)
    return loops

"""Puts the kernel's EROFS and overlayfs on the layer files of a FUSE mount, as one tree.

A process of its own: what it does makes requests to the daemon, which must not wait for itself. It
is given the FUSE mount as a descriptor and works in a mount namespace of its own, so that
nobody else ever sees the parts. Only the finished tree is put on the mountpoint. When this
process ends the namespace goes, and what is left is held by that tree alone: taking it down
takes all down, by whomever and in whatever way.

Run as a file with a socket for standard input, by which a ``StackRequest`` in JSON and the
descriptor come, or nothing: then it is not needed after all. Exit status 0: done, and standard
output has what ``stack`` returns. Otherwise the last line on standard error says why. Free of
imports that cost time.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import socket
import struct
import sys
from dataclasses import asdict, dataclass
from typing import Self

if not __package__:
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))  # noqa: PTH100, PTH120 - pathlib costs time

from lazyfs.newmount import MOUNT_ATTR_RDONLY, FileSystem, attach

CLONE_NEWNS = 0x20000
MS_REC, MS_PRIVATE = 0x4000, 0x40000

LOOP_CTL_GET_FREE = 0x4C82
LOOP_CONFIGURE = 0x4C0A
LO_FLAGS_READ_ONLY, LO_FLAGS_AUTOCLEAR = 1, 4
LOOP_CONFIG = struct.Struct("=II52xI176x64x")
"""``struct loop_config``: fd, block size, and of ``loop_info64`` the flags (linux/loop.h)."""
MAX_LOOP_TRIES = 64
MAX_REQUEST_BYTES = 1 << 20

FILES = "files"
"""Where the FUSE mount is, in our namespace."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class StackRequest:
    """What to put together where."""

    workshop: str
    """A directory that our namespace may cover."""
    layers: list[list[str]]
    """Bottom layer first: the name of its file, then those of its devices."""
    source: str
    """What the list of mounts shall show."""
    mountpoint: str
    attributes: int
    """Of the mount: ``MOUNT_ATTR_…``."""
    read_ahead_kb: int
    gaps: list[bool]
    """Bottom layer first: whether what lies beside a read may have to be fetched."""
    loop: bool = False
    """Use loop devices, whatever the kernel can do without."""

    def to_json(self) -> str:
        """One line that ``from_json`` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "StackRequest":
        """The request that ``to_json`` wrote."""
        return cls(**json.loads(text))


class LoopDevices:
    """Loop devices on files, each of which goes with its last user; we are one for the block."""

    def __init__(self) -> None:
        self.paths: dict[str, str] = {}
        self._open: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for device in self._open:
            os.close(device)

    def make(self, name: str, file: str) -> str:
        """A loop device on ``file``, known as ``name``; where there is one, the same.

        Raises:
            OSError.
        """
        if name not in self.paths:
            backing = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self.paths[name] = self._configure(backing)
            finally:
                os.close(backing)
        return self.paths[name]

    def _configure(self, backing: int) -> str:
        configuration = LOOP_CONFIG.pack(backing, 0, LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR)
        for _ in range(MAX_LOOP_TRIES):
            control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
            path = f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}"
            os.close(control)
            device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, LOOP_CONFIGURE, configuration)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # somebody else was quicker
                    raise
            else:
                self._open.append(device)
                return path
        raise OSError(errno.EBUSY, "no loop device is free")


def stack(request: StackRequest, folder_mount: int) -> dict[str, str]:
    """Make the tree and put it on its mountpoint.

    Args:
        request: of what, and where.
        folder_mount: descriptor of the FUSE mount with the layer files.

    Returns:
        The loop devices that were needed, by the names of the layer files.

    Raises:
        OSError: and nothing is left of it.
    """
    visible = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    _check(_libc.unshare(CLONE_NEWNS), "unshare")
    _check(_libc.mount(None, b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None), "private /")
    with FileSystem("tmpfs") as scratch:
        attach(scratch.mount(0), request.workshop)
    os.chdir(request.workshop)
    os.mkdir(FILES)  # noqa: PTH102
    attach(folder_mount, f"{request.workshop}/{FILES}")
    # Before files are opened: they take over what holds then.
    _read_ahead(os.stat(FILES), request.read_ahead_kb)  # noqa: PTH116
    with LoopDevices() as loops:
        tree = _tree(request, loops)
        _check(_libc.setns(visible, CLONE_NEWNS), "setns")
        attach(tree, request.mountpoint)
        return loops.paths


def _tree(request: StackRequest, loops: LoopDevices) -> int:
    """The mount of all layers."""
    layers = request.layers
    if len(layers) == 1:
        return _layer(request, 0, request.source, request.attributes, loops)
    with FileSystem("overlay") as overlay:
        overlay.set("source", request.source)
        for number in reversed(range(len(layers))):
            place = f"{request.workshop}/{number}"
            os.mkdir(place)  # noqa: PTH102
            image = f"{request.source} {number}"
            attach(_layer(request, number, image, MOUNT_ATTR_RDONLY, loops), place)
            overlay.set("lowerdir+", place)
        return overlay.mount(request.attributes)


def _layer(
    request: StackRequest, number: int, source: str, attributes: int, loops: LoopDevices
) -> int:
    """The mount of one layer: from its file, or where the kernel cannot, by loop devices."""
    names = request.layers[number]
    link = source.replace("/", "_")
    files = [f"{request.workshop}/{FILES}/{name}" for name in names]
    os.symlink(files[0], link)  # noqa: PTH211 - its name is what the list of mounts shows
    if not request.loop:
        try:
            return _erofs(request, link, files[1:], attributes, past_cache=request.gaps[number])
        except OSError as error:
            if error.errno != errno.ENOTBLK:
                raise
    devices = [loops.make(*item) for item in zip(names, files, strict=True)]
    return _erofs(request, devices[0], devices[1:], attributes)


def _erofs(
    request: StackRequest,
    source: str,
    devices: list[str],
    attributes: int,
    *,
    past_cache: bool = False,
) -> int:
    """An EROFS mount.

    Args:
        request: how.
        source: of the image.
        devices: of its devices.
        attributes: of the mount.
        past_cache: read file data past the page cache of ``source``. The kernel would read ahead in
            there, whatever file of the image comes next, and so keep the data twice.

    Raises:
        OSError.
    """
    with FileSystem("erofs") as erofs:
        erofs.set("source", source)
        erofs.set("ro")  # a read-only loop device wants it said
        if past_cache:
            with contextlib.suppress(OSError):  # Linux 6.14 learnt it
                erofs.set("directio")
        for device in devices:
            erofs.set("device", device)
        made = erofs.mount(attributes)
    _read_ahead(os.fstat(made), request.read_ahead_kb)
    return made


def _read_ahead(root: os.stat_result, kilobytes: int) -> None:
    """Let the kernel read further ahead from the file system with that root; best effort."""
    device = root.st_dev
    path = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
    with contextlib.suppress(OSError), open(path, "w") as file:  # noqa: PTH123
        file.write(str(kilobytes))


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _receive() -> tuple[bytes, list[int]]:
    """What was sent to standard input, with descriptors; empty: nobody needs us."""
    with socket.socket(fileno=0) as line:
        text, descriptors, _, _ = socket.recv_fds(line, MAX_REQUEST_BYTES, 1)
        while more := line.recv(MAX_REQUEST_BYTES):
            text += more
    return text, descriptors


def main() -> int:
    """Do what is asked for at standard input."""
    text, descriptors = _receive()
    if not descriptors:
        return 0
    try:
        print(json.dumps(stack(StackRequest.from_json(text.decode()), *descriptors)))  # noqa: T201 - likewise
    except OSError as error:
        print(error.strerror or error, file=sys.stderr)  # noqa: T201 - that is our answer
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Puts the kernel's EROFS and overlayfs on the layer files of a FUSE mount, as one tree.

A process of its own: what it does makes requests to the daemon, which must not wait for itself. It
is given the FUSE mount as a descriptor and works in a mount namespace of its own, so that
nobody else ever sees the parts. Only the finished tree is put on the mountpoint. When this
process ends the namespace goes, and what is left is held by that tree alone: taking it down
takes all down, by whomever and in whatever way.

Run as a file with one argument, a ``StackRequest`` in JSON. Exit status 0: done. Otherwise the last
line on standard error says why. Free of imports that cost time.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

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

FILES = "files"
"""Where the FUSE mount is, in our namespace."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class StackRequest:
    """What to put together where."""

    folder_mount: int
    """Descriptor of the FUSE mount with the layer files."""
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
    options: tuple[str, ...] = ()
    """For each EROFS."""

    def to_json(self) -> str:
        """One line that ``from_json`` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "StackRequest":
        """The request that ``to_json`` wrote."""
        return cls(**json.loads(text))


def stack(request: StackRequest) -> None:
    """Make the tree and put it on its mountpoint.

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
    attach(request.folder_mount, f"{request.workshop}/{FILES}")
    # Before files are opened: they take over what holds then.
    _read_ahead(FILES, request.read_ahead_kb)
    with contextlib.ExitStack() as loops:
        tree = _tree(request, loops)
        _check(_libc.setns(visible, CLONE_NEWNS), "setns")
        attach(tree, request.mountpoint)


def _tree(request: StackRequest, loops: contextlib.ExitStack) -> int:
    """The mount of all layers."""
    layers = request.layers
    if len(layers) == 1:
        return _layer(request, layers[0], request.source, request.attributes, loops)
    with FileSystem("overlay") as overlay:
        overlay.set("source", request.source)
        for number in reversed(range(len(layers))):
            place = f"{request.workshop}/{number}"
            os.mkdir(place)  # noqa: PTH102
            image = f"{request.source} {number}"
            attach(_layer(request, layers[number], image, MOUNT_ATTR_RDONLY, loops), place)
            _read_ahead(place, request.read_ahead_kb)
            overlay.set("lowerdir+", place)
        return overlay.mount(request.attributes)


def _layer(
    request: StackRequest,
    names: list[str],
    source: str,
    attributes: int,
    loops: contextlib.ExitStack,
) -> int:
    """The mount of one layer: from its file, or where the kernel cannot, by loop devices."""
    image, *devices = (f"{request.workshop}/{FILES}/{name}" for name in names)
    link = source.replace("/", "_")
    os.symlink(image, link)  # noqa: PTH211 - its name is what the list of mounts shows
    try:
        return _erofs(link, devices, attributes, request.options)
    except OSError as error:
        if error.errno != errno.ENOTBLK:
            raise
    devices = [loops.enter_context(_loop(device)) for device in devices]
    return _erofs(loops.enter_context(_loop(image)), devices, attributes, ())


def _erofs(source: str, devices: list[str], attributes: int, options: tuple[str, ...]) -> int:
    with FileSystem("erofs") as erofs:
        erofs.set("source", source)
        for device in devices:
            erofs.set("device", device)
        for option in options:
            erofs.set(*option.split("=", 1))
        return erofs.mount(attributes)


@contextlib.contextmanager
def _loop(file: str) -> Iterator[str]:
    """A loop device on a file, which is let go of with its last user."""
    backing = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for _ in range(MAX_LOOP_TRIES):
            control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
            path = f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}"
            os.close(control)
            device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR
            try:
                fcntl.ioctl(device, LOOP_CONFIGURE, LOOP_CONFIG.pack(backing, 0, flags))
                break
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # somebody else was quicker
                    raise
        else:
            raise OSError(errno.EBUSY, "no loop device is free")
    finally:
        os.close(backing)
    try:
        yield path
    finally:
        os.close(device)


def _read_ahead(place: str, kilobytes: int) -> None:
    """Let the kernel read further ahead from the file system at ``place``; best effort."""
    device = os.stat(place).st_dev  # noqa: PTH116
    path = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
    with contextlib.suppress(OSError), open(path, "w") as file:  # noqa: PTH123
        file.write(str(kilobytes))


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def main() -> int:
    """Do what the argument says."""
    try:
        stack(StackRequest.from_json(sys.argv[1]))
    except OSError as error:
        print(error.strerror or error, file=sys.stderr)  # noqa: T201 - that is our answer
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

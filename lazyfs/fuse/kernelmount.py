"""Makes a FUSE mount: opens the device, mounts it and agrees with the kernel on the protocol.

What comes out is a descriptor that any process may serve, one after another, for as long as
somebody holds a copy of it (``lazyfs.fuse.server``). Root mounts by mount(2), others by
``fusermount3``.
"""

import ctypes
import errno
import os
import re
import select
import socket
import subprocess
from dataclasses import dataclass

from lazyfs.errors import MountError
from lazyfs.fuse.protocol import (
    MIN_BUFFER_BYTES,
    Feature,
    decode_init,
    encode_init_reply,
    encode_resend,
)
from lazyfs.newmount import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, FileSystem

DEVICE = "/dev/fuse"
SUBTYPE = "lazyfs"

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
# sys/mount.h

COMMAND_FD_VARIABLE = "_FUSE_COMMFD"
"""Names the descriptor on which fusermount3 sends the device (libfuse, lib/mount.c)."""

FUSERMOUNT_WITHIN_S = 30.0
INIT_WITHIN_S = 10.0

FSNAME_MAX = 200


@dataclass(frozen=True, slots=True)
class MountChoice:
    """How an image is to be mounted."""

    image: str
    """Shown in ``/proc/self/mountinfo``."""
    allow_other: bool
    suid: bool
    dev: bool

    @property
    def fsname(self) -> str:
        """The image's name, free of what option lists give a meaning."""
        return "lazyfs:" + re.sub(r"[^\x21-\x7e]|[,\\]", "_", self.image)[:FSNAME_MAX]

    def for_helper(self) -> set[str]:
        """The options in the words of fusermount3."""
        options = {f"fsname={self.fsname}", f"subtype={SUBTYPE}", "ro", "default_permissions"}
        chosen = {"allow_other": self.allow_other, "suid": self.suid, "dev": self.dev}
        return options | {option for option, wanted in chosen.items() if wanted}


@dataclass(frozen=True, slots=True)
class Connection:
    """The kernel's end of a mount, agreed upon and ready to be served."""

    descriptor: int
    """Not inherited by other programs."""
    features: Feature
    """What was agreed."""
    can_resend: bool
    """Whether the kernel gives unanswered requests again to the next daemon."""


def mount(mountpoint: str, choice: MountChoice) -> Connection:
    """Mount on ``mountpoint`` and agree with the kernel on the protocol.

    Raises:
        MountError: it could not be mounted; nothing is left of it.
    """
    descriptor = _mount(mountpoint, choice)
    try:
        return _agree(descriptor)
    except BaseException as error:
        os.close(descriptor)
        _umount(mountpoint)
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise MountError(f"the kernel gave up the mount on {mountpoint}: {reason}") from error
        raise


def mount_apart(choice: MountChoice) -> tuple[Connection, int]:
    """Mount on no directory, and agree with the kernel on the protocol; for root.

    Returns:
        The connection, and the descriptor of the mount. As long as any process has the latter,
        or a file of the mount open, the mount lives; who serves it must close it.

    Raises:
        MountError: it could not be mounted.
    """
    descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    made = -1
    try:
        with FileSystem("fuse") as fuse:
            fuse.set("source", choice.fsname)
            fuse.set("subtype", SUBTYPE)
            fuse.set("fd", str(descriptor))
            fuse.set("rootmode", "40000")
            fuse.set("user_id", "0")
            fuse.set("group_id", "0")
            fuse.set("default_permissions")
            fuse.set("allow_other")
            made = fuse.mount(MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
        return _agree(descriptor), made
    except BaseException as error:
        for opened in (descriptor, made):
            if opened >= 0:
                os.close(opened)
        if isinstance(error, OSError):
            raise MountError(f"cannot mount FUSE: {error.strerror or error}") from error
        raise


def request_again(device: int) -> None:
    """Have the kernel give all requests again that a dead daemon had read.

    Raises:
        OSError: the kernel does not know how, or the mount is gone.
    """
    os.write(device, encode_resend())


def _mount(mountpoint: str, choice: MountChoice) -> int:
    if os.geteuid() == 0:
        try:
            return _mount_as_root(mountpoint, choice)
        except OSError as error:
            # Root of a container may lack the right, and fusermount3 have it.
            if error.errno != errno.EPERM:
                reason = error.strerror or str(error)
                raise MountError(f"cannot mount on {mountpoint}: {reason}") from error
    return _mount_by_helper(mountpoint, choice)


def _mount_as_root(mountpoint: str, choice: MountChoice) -> int:
    """The device after mount(2).

    Raises:
        OSError.
    """
    descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    flags = MS_RDONLY | (0 if choice.suid else MS_NOSUID) | (0 if choice.dev else MS_NODEV)
    data = (
        f"fd={descriptor},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},"
        f"default_permissions{',allow_other' if choice.allow_other else ''}"
    )
    libc = ctypes.CDLL(None, use_errno=True)
    words = (choice.fsname, mountpoint, f"fuse.{SUBTYPE}")
    source, target, kind = (os.fsencode(word) for word in words)
    if libc.mount(source, target, kind, ctypes.c_ulong(flags), data.encode()) != 0:
        number = ctypes.get_errno()
        os.close(descriptor)
        raise OSError(number, os.strerror(number), mountpoint)
    return descriptor


def _mount_by_helper(mountpoint: str, choice: MountChoice) -> int:
    """The device as fusermount3 sends it.

    Raises:
        MountError: with what it says.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = _run_helper(
            ["-o", ",".join(sorted(choice.for_helper())), "--", mountpoint], theirs.fileno()
        )
        theirs.close()
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    if done.returncode != 0 or not descriptors:
        reason = done.stderr.strip().replace("\n", "; ") or "fusermount3 failed"
        raise MountError(f"cannot mount on {mountpoint}: {reason}")
    return descriptors[0]


def _run_helper(words: list[str], command_fd: int) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "LC_ALL": "C", COMMAND_FD_VARIABLE: str(command_fd)}
    try:
        return subprocess.run(  # noqa: S603 - no shell; the path is one word behind "--"
            ["fusermount3", *words],  # noqa: S607 - wherever the system has it
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=FUSERMOUNT_WITHIN_S,
            env=environment,
            pass_fds=(command_fd,),
            check=False,
        )
    except FileNotFoundError as error:
        raise MountError("fusermount3 is missing; the package is called fuse3") from error
    except subprocess.TimeoutExpired as error:
        raise MountError("fusermount3 did not mount in time") from error


def _agree(descriptor: int) -> Connection:
    """Answer the kernel's INIT.

    Raises:
        OSError, MountError: it does not come, or is not understood.
    """
    watch = select.poll()
    watch.register(descriptor, select.POLLIN)
    if not watch.poll(INIT_WITHIN_S * 1000):
        raise MountError(f"the kernel did not begin the protocol within {INIT_WITHIN_S:g} s")
    offer = decode_init(os.read(descriptor, MIN_BUFFER_BYTES))
    if Feature.NO_OPENDIR_SUPPORT not in offer.features:
        raise MountError("this kernel's FUSE is too old: Linux 5.1 is needed")
    os.write(descriptor, encode_init_reply(offer))
    return Connection(descriptor, offer.agreed, Feature.HAS_RESEND in offer.features)


def _umount(mountpoint: str) -> None:
    """Take away what was mounted just now; best effort."""
    if os.geteuid() == 0:
        ctypes.CDLL(None).umount2(os.fsencode(mountpoint), MNT_DETACH | UMOUNT_NOFOLLOW)
        return
    words = ["fusermount3", "-u", "-q", "-z", "--", mountpoint]
    subprocess.run(words, timeout=FUSERMOUNT_WITHIN_S, check=False)  # noqa: S603 - as above

"""Mounting by the system calls that mount(8) does without: fsopen, fsconfig, fsmount, move_mount.

mount(8) makes a loop device of an EROFS file where the kernel needs none, mount(2) limits its
options to a page, and neither says what the kernel did not like. Numbers from
asm-generic/unistd.h (the same on every architecture), constants from linux/mount.h.

Free of imports that cost memory or time: a helper process uses it.
"""

import ctypes
import errno
import os
from typing import Self

OPEN_TREE, MOVE_MOUNT, FSOPEN, FSCONFIG, FSMOUNT = range(428, 433)

FSOPEN_CLOEXEC = FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING = 0, 1
FSCONFIG_CMD_CREATE = 6
MOVE_MOUNT_F_EMPTY_PATH = 0x4

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4

AT_FDCWD = -100
MAX_MESSAGES = 16
MAX_MESSAGE_BYTES = 8192

_libc = ctypes.CDLL(None, use_errno=True)


class FileSystem:
    """A file system in the making; a context manager that lets go of it.

    with FileSystem("erofs") as erofs:
        erofs.set("source", "/path/to/image")
        mount = erofs.mount(MOUNT_ATTR_RDONLY)
    attach(mount, "/mnt")
    """

    def __init__(self, kind: str) -> None:
        """Begin one of a type.

        Raises:
            OSError: the kernel has no such type, or we may not mount.
        """
        self._kind = kind
        self._context = _call(kind, FSOPEN, kind.encode(), FSOPEN_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._context)

    def set(self, option: str, value: str | None = None) -> None:
        """Set an option; without a value, a flag.

        Raises:
            OSError: with what the kernel says about it.
        """
        kind = FSCONFIG_SET_FLAG if value is None else FSCONFIG_SET_STRING
        words = option.encode(), None if value is None else os.fsencode(value)
        self._tell(f"{option}={value}" if value else option, kind, *words)

    def mount(self, attributes: int) -> int:
        """Make it, and a mount of it that is attached nowhere; its descriptor.

        Raises:
            OSError: with what the kernel says about it.
        """
        self._tell("", FSCONFIG_CMD_CREATE, None, None)
        return _call(self._kind, FSMOUNT, self._context, FSMOUNT_CLOEXEC, attributes)

    def _tell(self, about: str, command: int, key: bytes | None, value: bytes | None) -> None:
        try:
            _call(self._kind, FSCONFIG, self._context, command, key, value, 0)
        except OSError as error:
            said = "; ".join(self._messages())
            text = ": ".join(part for part in (self._kind, about, error.strerror, said) if part)
            raise OSError(error.errno, text) from None

    def _messages(self) -> list[str]:
        """What the kernel has to say (``fc_log`` in linux/fs_context.h)."""
        said = []
        for _ in range(MAX_MESSAGES):
            try:
                line = os.read(self._context, MAX_MESSAGE_BYTES)
            except OSError:  # ENODATA: that was all
                break
            said.append(line.decode(errors="replace").strip().removeprefix("e "))
        return said


def attach(mount: int, directory: str) -> None:
    """Put a mount on a directory.

    Raises:
        OSError.
    """
    flags = MOVE_MOUNT_F_EMPTY_PATH
    _call(directory, MOVE_MOUNT, mount, b"", AT_FDCWD, os.fsencode(directory), flags)


def is_missing(error: OSError) -> bool:
    """Whether an error says that this kernel, or what confines us, lacks these calls."""
    return error.errno in (errno.ENOSYS, errno.EPERM)


def _call(what: str, number: int, *arguments: bytes | int | None) -> int:
    passed = [
        ctypes.c_long(argument) if isinstance(argument, int) else ctypes.c_char_p(argument)
        for argument in arguments
    ]
    result = int(_libc.syscall(ctypes.c_long(number), *passed))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), what)
    return result

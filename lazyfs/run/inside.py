"""Files of a root directory, looked up as a process inside would, whatever its links say."""

import ctypes
import errno
import os
import struct

from lazyfs.errors import RunError

OPENAT2 = 437
"""asm-generic/unistd.h; the same on every architecture."""
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_IN_ROOT = 0x10
_OPEN_HOW = struct.Struct("=QQQ")
"""``struct open_how`` of linux/openat2.h: flags, mode, resolve."""

MAX_FILE_BYTES = 1 << 20


def read_inside(root: str, path: str) -> str:
    """The text of a file; empty if there is none.

    Raises:
        RunError: it cannot be read, or is too long.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        how = _OPEN_HOW.pack(flags, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
        arguments = (ctypes.c_int(top), ctypes.c_char_p(os.fsencode(path)), ctypes.c_char_p(how))
        found = int(libc.syscall(ctypes.c_long(OPENAT2), *arguments, ctypes.c_size_t(len(how))))
    finally:
        os.close(top)
    if found < 0:
        number = ctypes.get_errno()
        if number in (errno.ENOENT, errno.ENOTDIR):
            return ""
        raise RunError(f"the image's {path}: {os.strerror(number)}")
    try:
        with open(found, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise RunError(f"the image's {path}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise RunError(f"the image's {path} is longer than {MAX_FILE_BYTES} bytes")
    return data.decode(errors="surrogateescape")

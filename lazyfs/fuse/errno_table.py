"""Which errno a reader sees for which exception: the one table.

The most specific class wins: an exception is looked up along its method resolution order.
"""

import errno

from lazyfs.errors import (
    ConversionError,
    FuseRequestError,
    ImageFormatError,
    LazyfsError,
    MountError,
    NoSuchEntryError,
    NotADirectoryNodeError,
    NotAFileNodeError,
    NotASymlinkNodeError,
    PlanError,
    ProfileError,
    RunError,
    SourceUnavailableError,
    UnpackError,
    UnsupportedFeatureError,
    VerificationError,
)

ERRNO_OF: dict[type[LazyfsError], int] = {
    LazyfsError: errno.EIO,
    ImageFormatError: errno.EUCLEAN,  # what the kernel's EROFS calls EFSCORRUPTED
    UnsupportedFeatureError: errno.EOPNOTSUPP,
    VerificationError: errno.EIO,
    SourceUnavailableError: errno.EIO,
    NoSuchEntryError: errno.ENOENT,
    NotADirectoryNodeError: errno.ENOTDIR,
    NotASymlinkNodeError: errno.EINVAL,
    NotAFileNodeError: errno.EINVAL,
    FuseRequestError: errno.EIO,
    # These belong to setting up; a reader never meets them.
    PlanError: errno.EIO,
    MountError: errno.EIO,
    ConversionError: errno.EIO,
    UnpackError: errno.EIO,
    RunError: errno.EIO,
    ProfileError: errno.EIO,
}


class ErrnoError(Exception):
    """Answers a request with an errno and nothing else: no failure, neither logged nor counted."""

    def __init__(self, number: int) -> None:
        """Take a number of ``errno``."""
        super().__init__(errno.errorcode.get(number, str(number)))
        self.errno = number


ORDINARY_ANSWERS = (
    NoSuchEntryError,
    NotADirectoryNodeError,
    NotASymlinkNodeError,
    NotAFileNodeError,
)
"""Errors that say something about the question, not about image, network or program."""

MAX_GROUP_DEPTH = 32


def errno_of(error: Exception) -> int:
    """The errno that answers ``error``; ``EIO`` for a bug."""
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    for kind in type(error).__mro__:
        if kind in ERRNO_OF:
            return ERRNO_OF[kind]
    return errno.EIO


def first_cause(error: Exception) -> Exception:
    """The first single exception inside exception groups (nurseries make them)."""
    for _ in range(MAX_GROUP_DEPTH):
        if not isinstance(error, ExceptionGroup):
            break
        error = error.exceptions[0]
    return error

"""The errors of lazyfs.

    LazyfsError                     never raised itself
    ├── ImageFormatError            bytes break the format
    │   ├── TruncatedRecordError    a record passes the end of its bytes
    │   └── UnsupportedFeatureError a feature that lazyfs does not know
    ├── VerificationError           not the promised bytes
    │   ├── DigestMismatchError     a frame, table or blob against its digest
    │   ├── HashBlockMismatchError  a dm-verity hash block against its parent
    │   └── DataBlockMismatchError  a data block against its dm-verity leaf
    ├── SourceUnavailableError      could not fetch; another try may work
    │   └── DeadlineExceededError   ... within the time allowed
    ├── PlanError                   manifest and annotations do not make an image
    ├── MountError                  the mount could not be set up or taken down
    ├── ConversionError             the input cannot be converted
    ├── UnpackError                 the image cannot be unpacked there
    ├── RunError                    the container cannot be run
    ├── ProfileError                a profile that is none, or of something else
    └── NoSuchEntryError, NotADirectoryNodeError, NotASymlinkNodeError,
        NotAFileNodeError           ordinary answers of a file system
        └── NotYetThereError        (of the first) ... that may change

A message says what, where (layer, device, byte offset), what was wanted and what was found;
never a credential or a signed URL. Bugs are ``AssertionError`` or whatever Python raises.
"""

from typing import Self


class LazyfsError(Exception):
    """Base of every error that lazyfs raises on purpose."""


class ImageFormatError(LazyfsError):
    """The bytes break the on-disk format."""


class TruncatedRecordError(ImageFormatError):
    """A record passes the end of the bytes that should hold it."""


class UnsupportedFeatureError(ImageFormatError):
    """The image needs a feature that lazyfs does not have."""


class VerificationError(LazyfsError):
    """The bytes are not those that the digest promises."""

    expected: str | None = None
    actual: str | None = None
    """``ALGORITHM:HEX``, for logs; None where it was not one digest against another."""

    @classmethod
    def of_digests(cls, what: str, expected: str, actual: str) -> Self:
        """The error for ``what`` with another digest than the expected one."""
        error = cls(f"{what}: wanted {expected}, found {actual}")
        error.expected, error.actual = expected, actual
        return error


class DigestMismatchError(VerificationError):
    """A chunk frame, chunk table or blob does not have its digest."""


class HashBlockMismatchError(VerificationError):
    """A dm-verity hash block does not have the digest that its parent gives."""


class DataBlockMismatchError(VerificationError):
    """A data block does not have the digest that its dm-verity leaf gives."""


class SourceUnavailableError(LazyfsError):
    """The bytes could not be fetched; another try may work."""


class DeadlineExceededError(SourceUnavailableError):
    """The bytes did not come within the time that the user allowed."""


class PlanError(LazyfsError):
    """Manifest, configuration and annotations do not add up to a mountable image."""


class MountError(LazyfsError):
    """A mount could not be set up or taken down."""


class RunError(LazyfsError):
    """A container cannot be run."""


class ConversionError(LazyfsError):
    """The input cannot be converted."""


class ProfileError(LazyfsError):
    """A profile cannot be understood, or is not of this image."""


class UnpackError(LazyfsError):
    """The image cannot be unpacked, or not there."""


class NoSuchEntryError(LazyfsError):
    """The directory has no entry of that name."""


class NotYetThereError(NoSuchEntryError):
    """The directory has no entry of that name now, but may have one later."""


class NotADirectoryNodeError(LazyfsError):
    """A directory operation on something else."""


class NotASymlinkNodeError(LazyfsError):
    """A readlink on something else."""


class NotAFileNodeError(LazyfsError):
    """A read on something without file data."""


def innermost(error: BaseException) -> BaseException:
    """The first single exception inside nested exception groups (nurseries make them)."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class FuseRequestError(LazyfsError):
    """The kernel's request is not what the protocol says."""

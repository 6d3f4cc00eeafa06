"""Every error of lazyfs has its errno."""

import errno

import pytest

from lazyfs import errors
from lazyfs.errors import LazyfsError
from lazyfs.fuse.errno_table import ERRNO_OF, errno_of, first_cause


def all_errors(kind: type[LazyfsError] = LazyfsError) -> list[type[LazyfsError]]:
    """Those that a file system may run into, whatever else has been imported."""
    known = [kind] if kind.__module__ == errors.__name__ else []
    return known + [deeper for direct in kind.__subclasses__() for deeper in all_errors(direct)]


@pytest.mark.parametrize("kind", all_errors())
def test_every_error_is_mapped_by_more_than_the_base(kind):
    mapped = [base for base in kind.__mro__ if base in ERRNO_OF]
    assert mapped
    assert mapped[0] is not LazyfsError or kind is LazyfsError
    assert errno_of(kind("x")) == ERRNO_OF[mapped[0]]


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (errors.ImageFormatError("x"), errno.EUCLEAN),
        (errors.TruncatedRecordError("x"), errno.EUCLEAN),
        (errors.UnsupportedFeatureError("x"), errno.EOPNOTSUPP),
        (errors.DigestMismatchError("x"), errno.EIO),
        (errors.HashBlockMismatchError("x"), errno.EIO),
        (errors.DataBlockMismatchError("x"), errno.EIO),
        (errors.SourceUnavailableError("x"), errno.EIO),
        (errors.DeadlineExceededError("x"), errno.EIO),
        (errors.NoSuchEntryError("x"), errno.ENOENT),
        (errors.NotADirectoryNodeError("x"), errno.ENOTDIR),
        (errors.NotASymlinkNodeError("x"), errno.EINVAL),
        (errors.NotAFileNodeError("x"), errno.EINVAL),
        (OSError(errno.ENOSPC, "x"), errno.ENOSPC),
        (OSError("without a number"), errno.EIO),
        (KeyError("a bug"), errno.EIO),
    ],
)
def test_the_most_specific_class_decides(error, number):
    assert errno_of(error) == number


def test_a_new_subclass_takes_its_parents_errno():
    class NewFormatError(errors.UnsupportedFeatureError):
        pass

    assert errno_of(NewFormatError("x")) == errno.EOPNOTSUPP


def test_groups_are_unwrapped():
    inner = errors.VerificationError("x")
    group = ExceptionGroup("outer", [ExceptionGroup("inner", [inner, ValueError()]), KeyError()])
    assert first_cause(group) is inner
    assert first_cause(inner) is inner

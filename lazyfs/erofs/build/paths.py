"""Names of entries: split, confined to the image, and checked against Linux's limits."""

from lazyfs.erofs.ondisk import EROFS_NAME_LEN
from lazyfs.errors import ConversionError

PATH_LIMIT = 4095
"""Longest path and symlink target in bytes: ``PATH_MAX`` without its NUL."""


def shown(path: bytes) -> str:
    """A path as an error message shows it: quoted, on one line, no byte lost."""
    return repr(path.decode("utf-8", "backslashreplace"))


def split_path(path: bytes) -> list[bytes]:
    """The components of ``path`` below the image's root; none for the root itself.

    A leading ``/``, doubled slashes and ``.`` vanish, so that no name leaves the image.

    Raises:
        ConversionError: a ``..`` component, a NUL, or a limit of Linux exceeded.
    """
    if len(path) > PATH_LIMIT:
        raise ConversionError(
            f"{shown(path[:60])}...: path of {len(path)} bytes, at most {PATH_LIMIT}"
        )
    if b"\0" in path:
        raise ConversionError(f"{shown(path)}: NUL byte in the path")
    components = [part for part in path.split(b"/") if part and part != b"."]
    if b".." in components:
        raise ConversionError(f"{shown(path)}: '..' in the path")
    if len(path) > EROFS_NAME_LEN:
        for name in components:
            if len(name) > EROFS_NAME_LEN:
                raise ConversionError(
                    f"{shown(path)}: name of {len(name)} bytes, at most {EROFS_NAME_LEN}"
                )
    return components

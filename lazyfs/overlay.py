"""The rules by which stacked layers make one tree, as overlayfs has them.

An upper entry hides a lower one of the same name, unless both are directories: those are
merged. A whiteout (a character device 0:0) hides the name and is not shown itself. An
opaque directory (``trusted.overlay.opaque`` = ``y``) hides what lower layers have in it; not so
the root of a layer, whose mark overlayfs never looks at.
Source: the kernel's Documentation/filesystems/overlayfs.rst.
"""

import stat
from collections.abc import Mapping

PRIVATE_PREFIX = b"trusted.overlay."
"""Extended attributes of the overlay itself, which the merged tree does not show."""

OPAQUE_XATTR = PRIVATE_PREFIX + b"opaque"

MERGED_NLINK = 1
"""Link count of a merged directory: counting subdirectories of all layers would cost a walk."""


def is_whiteout(mode: int, rdev_major: int, rdev_minor: int) -> bool:
    """Whether an object says "this name does not exist"."""
    return stat.S_ISCHR(mode) and rdev_major == 0 and rdev_minor == 0


def is_opaque(xattrs: Mapping[bytes, bytes]) -> bool:
    """Whether a directory with these attributes hides lower layers' entries."""
    return xattrs.get(OPAQUE_XATTR) == b"y"


def visible_xattrs(xattrs: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """The attributes that the merged tree shows."""
    return {name: value for name, value in xattrs.items() if not name.startswith(PRIVATE_PREFIX)}

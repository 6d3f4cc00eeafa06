"""Names of what is here: ``erofs:FILE[,device=FILE...]``, a local EROFS image, and stores."""

from lazyfs.errors import MountError

PREFIX = "erofs:"
_DEVICE = ",device="

STORE_SCHEME = "store:"
"""Begins the name that a mount request has for the store on a directory."""


def parse_local_image(name: str) -> list[str] | None:
    """The paths in a name, the image first, then its devices; None for another transport.

    Raises:
        MountError: a path is missing.
    """
    if not name.startswith(PREFIX):
        return None
    paths = name.removeprefix(PREFIX).split(_DEVICE)
    if not all(paths):
        raise MountError(f"{name!r}: write erofs:FILE[,device=FILE...]")
    return paths

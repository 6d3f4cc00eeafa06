"""The names of local EROFS images: ``erofs:FILE[,device=FILE...]``."""

from lazyfs.errors import MountError

PREFIX = "erofs:"
_DEVICE = ",device="


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

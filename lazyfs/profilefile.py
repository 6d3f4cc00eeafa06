"""A startup profile in a file."""

from pathlib import Path

from lazyfs.profile.document import MAX_PROFILE_BYTES, Profile, decode_profile


def read_profile(path: Path) -> Profile:
    """The profile in a file, of which no more is read than a profile may have.

    Raises:
        ProfileError: it holds none.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return decode_profile(file.read(MAX_PROFILE_BYTES + 1))

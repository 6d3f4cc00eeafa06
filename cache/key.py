"""What names a stored chunk, and the file names made of it."""

import re
from typing import Final, NamedTuple

from cache.errors import InvalidChunkKeyError

DIGEST_HEX_LENGTHS: Final = {"sha256": 64, "sha512": 128}
"""The digest algorithms that may name a chunk, and the length of their digests in hex digits."""

_HEX: Final = re.compile(r"[0-9a-f]+", re.ASCII)
_FORM: Final = re.compile(r"[a-z]{1,16}(?:-(?:0|[1-9][0-9]{0,9}))?", re.ASCII)


class ChunkKey(NamedTuple):
    """Names one chunk, whatever layer or image it belongs to.

    A key may be built of anything; it is checked when it is made into a file name, which every
    store does before it looks anything up.
    """

    algorithm: str
    """Digest algorithm, one of ``DIGEST_HEX_LENGTHS``."""
    digest_hex: str
    """The digest that names the chunk, in lowercase hex: of its frame in the blob, or of a tree."""
    form: str
    """What is stored under the digest.

    ``data``: the decompressed chunk; ``frame``: the bytes as they lie in the blob; ``tree-<n>``:
    the n-th piece of a dm-verity tree. A word of letters, optionally with a number.
    """

    def check(self) -> None:
        """Accept only what may name a file: no separator, no dot, bounded length.

        Raises:
            InvalidChunkKeyError: unknown algorithm, malformed digest or form.
        """
        wanted = DIGEST_HEX_LENGTHS.get(self.algorithm)
        if wanted is None:
            raise InvalidChunkKeyError(f"unknown digest algorithm {self.algorithm!r:.40}")
        if len(self.digest_hex) != wanted or not _HEX.fullmatch(self.digest_hex):
            raise InvalidChunkKeyError(
                f"{self.digest_hex!r:.150} is not a {self.algorithm} digest in lowercase hex"
            )
        if not _FORM.fullmatch(self.form):
            raise InvalidChunkKeyError(f"{self.form!r:.40} is not the form of a chunk")

    @property
    def relative_path(self) -> str:
        """Where the chunk lies below the store's chunk folder.

        ``sha512/ab/abcd….data``. The form comes last, so that a tree of many pieces fills one
        folder and there are never more than 256 folders for an algorithm.

        Raises:
            InvalidChunkKeyError: as from ``check``.
        """
        self.check()
        return f"{self.algorithm}/{self.digest_hex[:2]}/{self.digest_hex}.{self.form}"

    @property
    def file_name(self) -> str:
        """The key as one file name, ``sha512-abcd….data``.

        Raises:
            InvalidChunkKeyError: as from ``check``.
        """
        self.check()
        return f"{self.algorithm}-{self.digest_hex}.{self.form}"

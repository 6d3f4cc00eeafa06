"""What a user can choose about a conversion."""

from dataclasses import dataclass

from lazyfs.errors import ConversionError
from lazyfs.profile.document import Profile
from lazyfs.seekable.chunktable import MAX_CHUNK_BYTES
from lazyfs.seekable.frames import DEFAULT_LEVEL
from lazyfs.seekable.mediatypes import Layout
from lazyfs.verity.params import MAX_BLOCK_BYTES, MIN_BLOCK_BYTES
from registry.platforms import Platform

DEFAULT_CHUNK_BYTES = 512 << 10
DEFAULT_BLOCK_BYTES = 4096
MIN_CHUNK_BYTES = 4096
MIN_LEVEL, MAX_LEVEL = -7, 22
MAX_JOBS = 256


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """Checked on construction.

    Raises (on construction):
        ConversionError: values that do not go together.
    """

    layout: Layout = Layout.CONTAINERD
    chunk_size_bytes: int = DEFAULT_CHUNK_BYTES
    rechunk: bool = False
    """Whether layers that are seekable in chunks of another size are cut anew."""
    file_aligned: bool = False
    """Whether chunks begin with files (``Layout.EROFS_SPEC`` only)."""
    level: int = DEFAULT_LEVEL
    jobs: int = 1
    """Threads that compress; the result does not depend on it."""
    verity: bool = True
    verity_block_size_bytes: int = DEFAULT_BLOCK_BYTES
    platforms: tuple[Platform, ...] = ()
    """Empty: all that the source has."""
    profile: Profile | None = None
    """What is to be in front of the layers' images."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        chunk, block = self.chunk_size_bytes, self.verity_block_size_bytes
        if not MIN_CHUNK_BYTES <= chunk <= MAX_CHUNK_BYTES:
            raise ConversionError(
                f"chunk size {chunk}: from {MIN_CHUNK_BYTES} to {MAX_CHUNK_BYTES} bytes are allowed"
            )
        if not MIN_BLOCK_BYTES <= block <= MAX_BLOCK_BYTES or block & (block - 1):
            raise ConversionError(
                f"verity block size {block}: a power of two from {MIN_BLOCK_BYTES} to "
                f"{MAX_BLOCK_BYTES} is needed"
            )
        if chunk % block:
            raise ConversionError(
                f"chunk size {chunk} is not a multiple of the verity block size {block}"
            )
        if self.file_aligned and self.layout is not Layout.EROFS_SPEC:
            raise ConversionError(
                f"chunks that begin with files need --layout {Layout.EROFS_SPEC}: "
                f"those of {self.layout} have one size"
            )
        if not MIN_LEVEL <= self.level <= MAX_LEVEL:
            raise ConversionError(
                f"compression level {self.level}: from {MIN_LEVEL} to {MAX_LEVEL} are allowed"
            )
        if not 1 <= self.jobs <= MAX_JOBS:
            raise ConversionError(f"{self.jobs} jobs: from 1 to {MAX_JOBS} are allowed")

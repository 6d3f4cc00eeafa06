"""Checked parameters of a dm-verity tree, and their superblock."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from lazyfs.errors import ImageFormatError, UnsupportedFeatureError
from lazyfs.verity.ondisk import MAX_SALT_BYTES, SIGNATURE, SUPERBLOCK, VERSION, Superblock

DIGEST_BYTES = {"sha512": 64, "sha256": 32}
"""Algorithms; each digest is its own slot in a hash block (both sizes are powers of two)."""

MIN_BLOCK_BYTES = 512
MAX_BLOCK_BYTES = 512 << 10
"""Range of block sizes that veritysetup knows."""

MAX_DEVICE_BYTES = 2**63 - 1


@dataclass(frozen=True, slots=True)
class VerityParams:
    """How a hash tree is made; checked on construction.

    Raises (on construction):
        ImageFormatError, UnsupportedFeatureError.
    """

    algorithm: str
    data_block_size_bytes: int
    hash_block_size_bytes: int
    data_blocks: int
    salt: bytes = b""
    hash_type: int = 1
    """1: the salt comes before the block (now); 0: behind it (Chrome OS)."""
    uuid: bytes = bytes(16)

    def __post_init__(self) -> None:
        """Refuse what no tree can have."""
        if self.algorithm not in DIGEST_BYTES:
            raise UnsupportedFeatureError(f"dm-verity algorithm {self.algorithm!r}")
        if self.hash_type not in (0, 1):
            raise UnsupportedFeatureError(f"dm-verity hash type {self.hash_type}")
        for what, size in (
            ("data", self.data_block_size_bytes),
            ("hash", self.hash_block_size_bytes),
        ):
            if not MIN_BLOCK_BYTES <= size <= MAX_BLOCK_BYTES or size & (size - 1):
                raise ImageFormatError(f"dm-verity {what} block size {size}")
        if not 1 <= self.data_blocks <= MAX_DEVICE_BYTES // self.data_block_size_bytes:
            raise ImageFormatError(f"dm-verity tree over {self.data_blocks} data blocks")
        if len(self.salt) > MAX_SALT_BYTES:
            raise ImageFormatError(f"dm-verity salt of {len(self.salt)} bytes")

    @property
    def digest_size_bytes(self) -> int:
        """Length of a digest, and of its slot in a hash block."""
        return DIGEST_BYTES[self.algorithm]

    @property
    def digests_per_block(self) -> int:
        """Digests in one hash block."""
        return self.hash_block_size_bytes // self.digest_size_bytes

    def check_covers(self, image_size_bytes: int) -> None:
        """Check that the tree is one over an image of that size.

        The number of data blocks is the only parameter that a superblock can get wrong
        without every block failing, so it must be held against the chunk table.

        Raises:
            ImageFormatError: too few or too many data blocks.
        """
        if self.data_blocks != -(-image_size_bytes // self.data_block_size_bytes):
            raise ImageFormatError(
                f"dm-verity tree over {self.data_blocks} blocks of {self.data_block_size_bytes} "
                f"bytes for an image of {image_size_bytes} bytes"
            )

    def hasher(self) -> Callable[[bytes | memoryview], bytes]:
        """A function from a block to its digest; thread-safe."""
        return block_hasher(self.algorithm, self.salt, self.hash_type)


def block_hasher(
    algorithm: str, salt: bytes, hash_type: int
) -> Callable[[bytes | memoryview], bytes]:
    """A function from a block to its digest; thread-safe.

    Joining the salt to the block costs less than copying a salted hash object.
    """
    new = hashlib.sha512 if algorithm == "sha512" else hashlib.sha256
    if not salt:
        return lambda block: new(block).digest()
    if hash_type == 0:
        return lambda block: new(b"".join((block, salt))).digest()
    return lambda block: new(b"".join((salt, block))).digest()


def hash_blocks(
    block_hash: Callable[[bytes | memoryview], bytes],
    block_bytes: int,
    data: bytes | bytearray | memoryview,
) -> bytes:
    """The digests of the blocks of ``data``, joined; a short last block counts as padded."""
    view = memoryview(data)
    whole = len(view) - len(view) % block_bytes
    digests = [block_hash(view[at : at + block_bytes]) for at in range(0, whole, block_bytes)]
    if whole < len(view):
        digests.append(block_hash(bytes(view[whole:]).ljust(block_bytes, b"\0")))
    return b"".join(digests)


def decode_superblock(payload: bytes) -> VerityParams:
    """The parameters in a superblock.

    Args:
        payload: begins with the superblock.

    Raises:
        ImageFormatError: it breaks the format.
        UnsupportedFeatureError: a version, algorithm or hash type that lazyfs does not know.
    """
    superblock = SUPERBLOCK.decode(payload)
    if superblock.signature != SIGNATURE:
        raise ImageFormatError(f"no dm-verity superblock: it begins with {superblock.signature!r}")
    if superblock.version != VERSION:
        raise UnsupportedFeatureError(f"dm-verity superblock version {superblock.version}")
    if superblock.salt_size > MAX_SALT_BYTES:
        raise ImageFormatError(f"dm-verity salt of {superblock.salt_size} bytes")
    algorithm = superblock.algorithm.rstrip(b"\0").decode("ascii", "replace")
    return VerityParams(
        algorithm=algorithm,
        data_block_size_bytes=superblock.data_block_size,
        hash_block_size_bytes=superblock.hash_block_size,
        data_blocks=superblock.data_blocks,
        salt=superblock.salt[: superblock.salt_size],
        hash_type=superblock.hash_type,
        uuid=superblock.uuid,
    )


def encode_superblock(params: VerityParams) -> bytes:
    """The 512 bytes of the superblock."""
    return SUPERBLOCK.encode(
        Superblock(
            signature=SIGNATURE,
            version=VERSION,
            hash_type=params.hash_type,
            uuid=params.uuid,
            algorithm=params.algorithm.encode(),
            data_block_size=params.data_block_size_bytes,
            hash_block_size=params.hash_block_size_bytes,
            data_blocks=params.data_blocks,
            salt_size=len(params.salt),
            pad1=b"",
            salt=params.salt,
            pad2=b"",
        )
    )

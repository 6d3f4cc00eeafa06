"""Build a hash tree from a stream of data; deterministic, UUID included.

Memory: the tree, 1/64 of the data with SHA-512 and blocks of 4 KiB.
"""

import dataclasses
import hashlib
from typing import NamedTuple

from lazyfs.verity.geometry import geometry
from lazyfs.verity.params import VerityParams, block_hasher, encode_superblock, hash_blocks


class BuiltTree(NamedTuple):
    """A finished tree."""

    root_digest: bytes
    payload: bytes
    """Superblock, padding and tree, a multiple of the block size."""
    params: VerityParams


class HashTreeBuilder:
    """Takes the data in order; a last, short block counts as padded with zeros.

    ``add`` takes data of any length. Where hashing is to be spread over threads,
    ``hash_blocks`` (which keeps nothing) runs on whole blocks anywhere and ``add_digests``
    takes its results in order; one builder is fed in one of the two ways.
    """

    def __init__(
        self,
        *,
        algorithm: str = "sha512",
        block_size_bytes: int = 4096,
        salt: bytes = b"",
        hash_type: int = 1,
    ) -> None:
        """Choose the form of the tree.

        Raises:
            ImageFormatError: a block size, salt or hash type that trees cannot have.
            UnsupportedFeatureError: an unknown algorithm.
        """
        self._draft = VerityParams(
            algorithm=algorithm,
            data_block_size_bytes=block_size_bytes,
            hash_block_size_bytes=block_size_bytes,
            data_blocks=1,
            salt=salt,
            hash_type=hash_type,
        )
        self._hash = block_hasher(algorithm, salt, hash_type)
        self._leaves = bytearray()
        self._rest = b""

    def hash_blocks(self, data: bytes | bytearray | memoryview) -> bytes:
        """The digests of the blocks of ``data``, joined; the last block may be short."""
        return hash_blocks(self._hash, self._draft.data_block_size_bytes, data)

    def add_digests(self, digests: bytes) -> None:
        """Append the digests of the next data blocks."""
        self._leaves += digests

    def add(self, data: bytes | memoryview) -> None:
        """Append data."""
        joined = self._rest + bytes(data)
        whole = len(joined) - len(joined) % self._draft.data_block_size_bytes
        self._leaves += self.hash_blocks(memoryview(joined)[:whole])
        self._rest = joined[whole:]

    def finish(self) -> BuiltTree:
        """Close the tree.

        Raises:
            ImageFormatError: there was no data: an empty device has no tree.
        """
        self._leaves += self.hash_blocks(self._rest)
        self._rest = b""
        draft = self._draft
        params = dataclasses.replace(
            draft, data_blocks=len(self._leaves) // draft.digest_size_bytes
        )
        digests = self._leaves
        levels: list[bytearray] = []
        while len(digests) > params.digest_size_bytes:
            digests += bytes(-len(digests) % params.hash_block_size_bytes)
            levels.append(digests)
            digests = bytearray(self.hash_blocks(digests))
        root_digest = bytes(digests)
        params = dataclasses.replace(params, uuid=tree_uuid(params, root_digest))
        shape = geometry(params)
        head = encode_superblock(params).ljust(shape.tree_block * shape.block_size_bytes, b"\0")
        return BuiltTree(root_digest, b"".join([head, *reversed(levels)]), params)


def tree_uuid(params: VerityParams, root_digest: bytes) -> bytes:
    """A version 8 UUID (RFC 9562) from what the superblock and the root say."""
    seed = encode_superblock(dataclasses.replace(params, uuid=bytes(16))) + root_digest
    raw = bytearray(hashlib.sha256(b"lazyfs dm-verity uuid\0" + seed).digest()[:16])
    raw[6] = raw[6] & 0x0F | 0x80
    raw[8] = raw[8] & 0x3F | 0x80
    return bytes(raw)

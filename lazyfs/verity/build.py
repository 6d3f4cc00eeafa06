"""Build a hash tree from a stream of data; deterministic, UUID included."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import NamedTuple

from lazyfs.verity.geometry import geometry
from lazyfs.verity.params import VerityParams, block_hasher, encode_superblock, hash_blocks

Write = Callable[[int, bytes], None]
"""Takes an offset in the payload (superblock and tree) and the bytes that belong there."""


class BuiltTree(NamedTuple):
    """A finished tree."""

    root_digest: bytes
    payload: bytes
    """Superblock, padding and tree, a multiple of the block size."""
    params: VerityParams


class HashTreeWriter:
    """Builds the tree of an image of known size and writes hash blocks as they fill.

    ``hash_blocks`` (which keeps nothing) runs on whole blocks in any thread; ``add_digests``
    takes its results in order. Memory: one block per level.
    """

    def __init__(
        self,
        image_size_bytes: int,
        write: Write,
        *,
        algorithm: str = "sha512",
        block_size_bytes: int = 4096,
        salt: bytes = b"",
        hash_type: int = 1,
    ) -> None:
        """Choose the form of the tree.

        Raises:
            ImageFormatError: a block size, salt, hash type or image that trees cannot have.
            UnsupportedFeatureError: an unknown algorithm.
        """
        self._params = VerityParams(
            algorithm=algorithm,
            data_block_size_bytes=block_size_bytes,
            hash_block_size_bytes=block_size_bytes,
            data_blocks=-(-image_size_bytes // block_size_bytes),
            salt=salt,
            hash_type=hash_type,
        )
        self._shape = geometry(self._params)
        self._hash = self._params.hasher()
        self._write = write
        self._open = [bytearray() for _ in self._shape.levels]
        self._done = [0] * len(self._shape.levels)
        self._root = b""

    @property
    def payload_size_bytes(self) -> int:
        """Length of superblock, padding and tree."""
        return self._shape.payload_size_bytes

    def hash_blocks(self, data: bytes | bytearray | memoryview) -> bytes:
        """The digests of the blocks of ``data``, joined; a short last block is padded."""
        return hash_blocks(self._hash, self._params.data_block_size_bytes, data)

    def add_digests(self, digests: bytes) -> None:
        """Append the digests of the next data blocks."""
        self._add(0, digests)

    def finish(self) -> tuple[bytes, VerityParams]:
        """Write what is left; give the root digest and what the superblock says."""
        size = self._params.hash_block_size_bytes
        for level, digests in enumerate(self._open):
            if digests:
                self._add(level, bytes(-len(digests) % size))
        if self._done != [level.blocks for level in self._shape.levels] or not self._root:
            raise AssertionError("the tree is not over the whole image")
        params = dataclasses.replace(self._params, uuid=tree_uuid(self._params, self._root))
        self._write(0, encode_superblock(params).ljust(self._shape.tree_block * size, b"\0"))
        return self._root, params

    def _add(self, level: int, digests: bytes) -> None:
        """Append digests to a level: full blocks are written, and hashed for the next one."""
        if level == len(self._open):
            self._root += digests
            return
        size = self._params.hash_block_size_bytes
        pending = self._open[level]
        pending += digests
        full = len(pending) - len(pending) % size
        if full:
            blocks = bytes(pending[:full])
            del pending[:full]
            at = self._shape.levels[level].first_block + self._done[level]
            self._write(at * size, blocks)
            self._done[level] += full // size
            self._add(level + 1, hash_blocks(self._hash, size, blocks))


class HashTreeBuilder:
    """Takes data of unknown length in order; a last, short block counts as padded with zeros.

    Memory: twice the tree (1/64 of the data with SHA-512 and blocks of 4 KiB) in the end. For
    large images of known size there is ``HashTreeWriter``.
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

    def add(self, data: bytes | memoryview) -> None:
        """Append data."""
        joined = self._rest + bytes(data)
        whole = len(joined) - len(joined) % self._draft.data_block_size_bytes
        self._leaves += self._hash_blocks(memoryview(joined)[:whole])
        self._rest = joined[whole:]

    def finish(self) -> BuiltTree:
        """Close the tree.

        Raises:
            ImageFormatError: there was no data: an empty device has no tree.
        """
        self._leaves += self._hash_blocks(self._rest)
        self._rest = b""
        draft = self._draft
        payload = bytearray()

        def write(offset: int, data: bytes) -> None:
            payload[offset : offset + len(data)] = data

        tree = HashTreeWriter(
            len(self._leaves) // draft.digest_size_bytes * draft.data_block_size_bytes,
            write,
            algorithm=draft.algorithm,
            block_size_bytes=draft.data_block_size_bytes,
            salt=draft.salt,
            hash_type=draft.hash_type,
        )
        payload += bytes(tree.payload_size_bytes)
        tree.add_digests(bytes(self._leaves))
        root_digest, params = tree.finish()
        return BuiltTree(root_digest, bytes(payload), params)

    def _hash_blocks(self, data: bytes | memoryview) -> bytes:
        return hash_blocks(self._hash, self._draft.data_block_size_bytes, data)


def tree_uuid(params: VerityParams, root_digest: bytes) -> bytes:
    """A version 8 UUID (RFC 9562) from what the superblock and the root say."""
    seed = encode_superblock(dataclasses.replace(params, uuid=bytes(16))) + root_digest
    raw = bytearray(hashlib.sha256(b"lazyfs dm-verity uuid\0" + seed).digest()[:16])
    raw[6] = raw[6] & 0x0F | 0x80
    raw[8] = raw[8] & 0x3F | 0x80
    return bytes(raw)

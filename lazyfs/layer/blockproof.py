"""Data blocks held against a whole dm-verity tree that lies in a file beside the data.

The tree is audited first, so that its digests can be believed; then blocks can be checked in
any order and in any thread, without keeping anything of the tree in memory.
"""

from typing import NamedTuple

from lazyfs.errors import DataBlockMismatchError, ImageFormatError
from lazyfs.layer.contentfile import ContentFile
from lazyfs.seekable.pointers import TreePointer
from lazyfs.steps import Need, run
from lazyfs.verity.audit import Report, TreeAudit, audit_tree
from lazyfs.verity.geometry import geometry
from lazyfs.verity.ondisk import SUPERBLOCK
from lazyfs.verity.params import VerityParams, decode_superblock, hash_blocks


class BrokenData(NamedTuple):
    """A data block that does not have the digest that its leaf gives."""

    block: int
    offset: int
    """In the image."""
    wanted: bytes
    found: bytes

    def error(self, algorithm: str) -> DataBlockMismatchError:
        """What to raise for it."""
        return DataBlockMismatchError(
            f"data block {self.block} (byte {self.offset}): wanted "
            f"{algorithm}:{self.wanted.hex()}, found {algorithm}:{self.found.hex()}"
        )


class BlockProof:
    """The proof of an image by the tree behind it in the same file."""

    def __init__(
        self,
        file: ContentFile,
        image_size_bytes: int,
        payload_offset: int,
        params: VerityParams,
        root_digest: bytes,
    ) -> None:
        """Describe the tree; ``audit`` it before anything is checked.

        Args:
            file: holds image and payload.
            image_size_bytes: without the padding before the payload.
            payload_offset: of the tree's superblock in the file.
            params: what that superblock says.
            root_digest: trusted.

        Raises:
            ImageFormatError: the root digest is of another algorithm, or the tree is one over
                an image of another size.
        """
        if len(root_digest) != params.digest_size_bytes:
            raise ImageFormatError(
                f"dm-verity root digest of {len(root_digest)} bytes for {params.algorithm}"
            )
        params.check_covers(image_size_bytes)
        self.params = params
        self.payload_offset = payload_offset
        self._file = file
        self._image_size_bytes = image_size_bytes
        self._root_digest = root_digest
        self._geometry = geometry(params)
        self._hash = params.hasher()
        self._audit: TreeAudit | None = None

    @property
    def payload_size_bytes(self) -> int:
        """Length of superblock and tree."""
        return self._geometry.payload_size_bytes

    def audit(self, report: Report) -> TreeAudit:
        """Prove the tree in the file by its root (blocks, slow).

        Args:
            report: told of each broken hash block.

        Raises:
            OSError: the file cannot be read.
        """

        def read(need: Need) -> bytes:
            return self._file.read(self.payload_offset + need.offset, need.length)

        self._audit = run(audit_tree(self.params, self._root_digest, report), read)
        return self._audit

    def check(self, offset: int, data: bytes) -> list[BrokenData]:
        """Check the whole blocks in some data of the image.

        Args:
            offset: of ``data`` in the image; the blocks that it cuts are left out.
            data: what is behind the image's end counts for nothing.
        """
        size = self.params.data_block_size_bytes
        end = min(offset + len(data), self._image_size_bytes)
        first = -(-offset // size)
        stop = end // size if end < self._image_size_bytes else self.params.data_blocks
        if first >= stop:
            return []
        view = memoryview(data)[first * size - offset : end - offset]
        view = view[: (stop - first) * size]
        found = hash_blocks(self._hash, size, view)
        wanted = self._wanted(first, stop - first)
        return [] if found == wanted else self._broken(first, found, wanted)

    def check_block(self, block: int) -> list[BrokenData]:
        """Check one block in the file."""
        size = self.params.data_block_size_bytes
        offset = block * size
        length = min(size, self._image_size_bytes - offset)
        return self.check(offset, self._file.read(offset, length))

    def _wanted(self, first: int, count: int) -> bytes:
        step = self.params.digest_size_bytes
        if not self._geometry.levels:
            return self._root_digest
        where = self._geometry.digests(0, first, count, step)
        return self._file.read(self.payload_offset + where.offset, where.length)

    def _broken(self, first: int, found: bytes, wanted: bytes) -> list[BrokenData]:
        """The blocks whose digests differ, as far as the tree can judge them."""
        if self._audit is None:
            raise AssertionError("check() before audit()")
        size, step = self.params.data_block_size_bytes, self.params.digest_size_bytes
        broken = []
        for at in range(0, len(found), step):
            block = first + at // step
            one, other = wanted[at : at + step], found[at : at + step]
            if one != other and self._audit.is_proven(block):
                broken.append(BrokenData(block, block * size, one, other))
        return broken


def proof_in_content(file: ContentFile, size_bytes: int, tree: TreePointer) -> BlockProof:
    """The proof of an image by the tree that ends its content.

    Args:
        file: begins with the content.
        size_bytes: of the content.
        tree: says where in it the tree lies.

    Raises:
        ImageFormatError, UnsupportedFeatureError: there is no such tree.
        OSError: the file cannot be read.
    """
    if tree.offset + SUPERBLOCK.size_bytes > size_bytes:
        raise ImageFormatError(f"dm-verity tree at {tree.offset} of {size_bytes} bytes")
    params = decode_superblock(file.read(tree.offset, SUPERBLOCK.size_bytes))
    proof = BlockProof(file, tree.offset, tree.offset, params, tree.root_digest)
    if params.data_blocks > 1 and tree.offset + proof.payload_size_bytes > size_bytes:
        raise ImageFormatError(
            f"dm-verity tree at {tree.offset} of {size_bytes} bytes, "
            f"it needs {proof.payload_size_bytes}"
        )
    return proof

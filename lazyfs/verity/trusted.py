"""A hash tree that is fetched lazily and trusted block by block.

The caller asks what is missing, fetches it, hands it in, and then has data verified:

    while needed := tree.missing(first, count):
        for where in needed:
            tree.add(where, <fetch it>)
    tree.verify(first, data)

Only hash blocks that were proven against the root digest are kept. Upper levels stay (1/64 of
the leaf level with SHA-512 and blocks of 4 KiB); leaf blocks are dropped, least recently used
first, beyond a limit that trees may share. Not for several threads at once. Under trio a task is
alone between two checkpoints: let there be none between the last ``missing`` and ``verify``.
"""

from lazyfs.errors import DataBlockMismatchError, HashBlockMismatchError, ImageFormatError
from lazyfs.model import ByteRange
from lazyfs.verity.geometry import geometry
from lazyfs.verity.leaves import LeafMemory
from lazyfs.verity.params import VerityParams, hash_blocks


class TrustedHashTree:
    """The proven part of one hash tree."""

    def __init__(
        self,
        params: VerityParams,
        root_digest: bytes,
        leaves: LeafMemory | None = None,
    ) -> None:
        """Begin with nothing but the root.

        Args:
            params: shape of the tree. It need not be proven: a wrong one proves nothing.
            root_digest: trusted.
            leaves: keeps the leaf blocks, and may be shared with other trees; None: one of
                its own. Its limit gives way to a single request that needs more.

        Raises:
            ImageFormatError: the digest is not one of the tree's algorithm.
        """
        if len(root_digest) != params.digest_size_bytes:
            raise ImageFormatError(
                f"dm-verity root digest of {len(root_digest)} bytes for {params.algorithm}"
            )
        self.params = params
        self._geometry = geometry(params)
        self._root_digest = root_digest
        self._hash = params.hasher()
        self._leaves = LeafMemory() if leaves is None else leaves
        self._first_key = self._leaves.first_key()
        self._uppers: tuple[dict[int, bytes], ...] = tuple({} for _ in self._geometry.levels[1:])

    @property
    def payload_size_bytes(self) -> int:
        """Length of superblock and tree; a shorter payload cannot hold this tree."""
        return self._geometry.payload_size_bytes

    def missing(self, first_block: int, count: int) -> list[ByteRange]:
        """Hash blocks still needed to verify ``count`` data blocks from ``first_block``.

        Returns:
            Ranges relative to the start of the payload (the superblock is at 0), in the
            order in which ``add`` wants them: top levels first. Neighbours are joined.
        """
        self._check_blocks(first_block, count)
        if not self._geometry.levels or count == 0:
            return []
        fan_out = self.params.digests_per_block
        first, last = first_block // fan_out, (first_block + count - 1) // fan_out
        needed_bytes = (last - first + 1) * self.params.hash_block_size_bytes
        if needed_bytes > self._leaves.limit_bytes:
            self._leaves.limit_bytes = needed_bytes
        kept, first_key = self._leaves.blocks, self._first_key
        wanted: list[int] = []
        for index in range(first, last + 1):
            if first_key + index in kept:
                kept.move_to_end(first_key + index)
            else:
                wanted.append(index)
        if not wanted:
            return []
        blocks = [self._geometry.levels[0].first_block + index for index in wanted]
        for level, known in enumerate(self._uppers, start=1):
            parents = dict.fromkeys(index // fan_out for index in wanted)
            wanted = [index for index in parents if index not in known]
            blocks += [self._geometry.levels[level].first_block + index for index in wanted]
        return self._coalesce(sorted(blocks))

    def add(self, where: ByteRange, data: bytes) -> None:
        """Take fetched, unproven bytes of the payload and keep what can be proven.

        A block whose parent is not proven yet is passed over: ``missing`` asks again.

        Args:
            where: whole blocks, relative to the start of the payload.
            data: as many bytes.

        Raises:
            HashBlockMismatchError: a block is not what its parent says. What was proven
                before it is kept.
        """
        size = self.params.hash_block_size_bytes
        if where.offset % size or where.length % size or len(data) != where.length:
            raise AssertionError(f"{len(data)} bytes for {where}, blocks have {size}")
        view = memoryview(data)
        for position in range(0, len(data), size):
            at = self._geometry.locate((where.offset + position) // size)
            if at is not None:
                self._add_block(*at, bytes(view[position : position + size]))
        self._leaves.trim()

    def verify(self, first_block: int, data: bytes | bytearray | memoryview) -> None:
        """Check data blocks against their leaves, of which none may be missing.

        Args:
            first_block: of the data.
            data: whole blocks. Only the last block of the tree may be short; it counts as
                padded with zeros.

        Raises:
            DataBlockMismatchError: names the first block that differs.
        """
        size = self.params.data_block_size_bytes
        count = -(-len(data) // size)
        if len(data) % size and first_block + count != self.params.data_blocks:
            raise AssertionError(f"{len(data)} bytes are not whole data blocks of {size}")
        wanted = self.digests(first_block, count)
        found = hash_blocks(self._hash, size, data)
        if found != wanted:
            self._raise_data_mismatch(first_block, found, wanted)

    def digests(self, first_block: int, count: int) -> bytes:
        """The digests of data blocks, joined, as ``hash_blocks`` gives them; no leaf is missing.

        For who hashes the blocks in a thread.
        """
        self._check_blocks(first_block, count)
        digest_size = self.params.digest_size_bytes
        fan_out = self.params.digests_per_block
        parts = []
        while count > 0:
            leaf, slot = divmod(first_block, fan_out)
            some = min(count, fan_out - slot)
            parts.append(self._digests_of(leaf, slot * digest_size, some * digest_size))
            first_block += some
            count -= some
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _digests_of(self, leaf_index: int, offset: int, length: int) -> bytes:
        if not self._geometry.levels:
            return self._root_digest
        leaf = self._leaves.blocks.get(self._first_key + leaf_index)
        if leaf is None:
            raise AssertionError(f"verify() before leaf block {leaf_index} was added")
        return leaf[offset : offset + length]

    def _raise_data_mismatch(self, first_block: int, found: bytes, wanted: bytes) -> None:
        step = self.params.digest_size_bytes
        for start in range(0, len(found), step):
            if found[start : start + step] != wanted[start : start + step]:
                block = first_block + start // step
                raise DataBlockMismatchError.of_digests(
                    f"data block {block} (byte {block * self.params.data_block_size_bytes})",
                    f"{self.params.algorithm}:{wanted[start : start + step].hex()}",
                    f"{self.params.algorithm}:{found[start : start + step].hex()}",
                )

    def _add_block(self, level: int, index: int, block: bytes) -> None:
        """Keep one block if its parent, already proven, has its digest."""
        if level == len(self._uppers):
            wanted = self._root_digest
        else:
            parent_index, slot = divmod(index, self.params.digests_per_block)
            parent = self._uppers[level].get(parent_index)
            if parent is None:
                return
            start = slot * self.params.digest_size_bytes
            wanted = parent[start : start + self.params.digest_size_bytes]
        found = self._hash(block)
        if found != wanted:
            raise HashBlockMismatchError.of_digests(
                f"hash block {index} of level {level}",
                f"{self.params.algorithm}:{wanted.hex()}",
                f"{self.params.algorithm}:{found.hex()}",
            )
        if level:
            self._uppers[level - 1][index] = block
        else:
            self._leaves.put(self._first_key + index, block)

    def _check_blocks(self, first_block: int, count: int) -> None:
        if first_block < 0 or count < 0 or first_block + count > self.params.data_blocks:
            raise AssertionError(
                f"{count} data blocks from {first_block}, there are {self.params.data_blocks}"
            )

    def _coalesce(self, blocks: list[int]) -> list[ByteRange]:
        size = self.params.hash_block_size_bytes
        ranges: list[ByteRange] = []
        for block in blocks:
            if ranges and ranges[-1].end == block * size:
                ranges[-1] = ByteRange(ranges[-1].offset, ranges[-1].length + size)
            else:
                ranges.append(ByteRange(block * size, size))
        return ranges

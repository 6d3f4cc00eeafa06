"""The leaf blocks of hash trees that were proven last, of all trees that share a limit."""

from collections import OrderedDict
from itertools import count

LEAF_LIMIT_BYTES = 12 << 20
"""Leaf blocks kept; this much covers 768 MiB of data with SHA-512 and blocks of 4 KiB."""

KEYS_OF_A_TREE = 1 << 52
"""More than a tree has leaves: of 2**63 bytes, and at least 4 KiB for each."""


class LeafMemory:
    """Proven leaf blocks up to a limit in bytes, the least recently used going first.

    The trees of a mount share one, so that its limit is the mount's.
    """

    def __init__(self, limit_bytes: int = LEAF_LIMIT_BYTES) -> None:
        """Keep at most ``limit_bytes``."""
        self.limit_bytes = limit_bytes
        """Raised by a single request that needs more."""
        self.blocks: OrderedDict[int, bytes] = OrderedDict()
        """By the first key of a tree and the index of a leaf; the last one used is the last.

        Looked at for each read, so without a method between.
        """
        self._used_bytes = 0
        self._first_keys = count(0, KEYS_OF_A_TREE)

    def first_key(self) -> int:
        """The key of the first leaf of one more tree; those of its other leaves follow."""
        return next(self._first_keys)

    def put(self, key: int, block: bytes) -> None:
        """Keep a proven block as the last one used; the limit is for ``trim``."""
        old = self.blocks.pop(key, None)
        if old is not None:
            self._used_bytes -= len(old)
        self.blocks[key] = block
        self._used_bytes += len(block)

    def trim(self) -> None:
        """Drop what is beyond the limit."""
        while self._used_bytes > self.limit_bytes:
            _, dropped = self.blocks.popitem(last=False)
            self._used_bytes -= len(dropped)

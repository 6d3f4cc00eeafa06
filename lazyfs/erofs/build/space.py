"""Where metadata lies: a bump allocator for inodes and directory blocks."""

from lazyfs.erofs.ondisk import EROFS_ISLOT_SIZE


def round_up(value: int, unit: int) -> int:
    """The least multiple of ``unit`` that is not below ``value``."""
    return -(-value // unit) * unit


class MetadataSpace:
    """Hands out inode slots, and whole blocks from behind them.

    Blocks are taken from the first free block, and inodes go on filling the block that was
    open before, so that a directory of several blocks costs no gap.
    """

    def __init__(self, start: int, block_size: int) -> None:
        """All bytes from ``start`` on are free."""
        self._block_size = block_size
        self._cursor = start
        self._open_end = self._free = round_up(start, block_size)

    @property
    def end(self) -> int:
        """Where the metadata ends in bytes, a whole number of blocks."""
        return self._free

    def slot(self, length: int, *, within_block: bool = False) -> int:
        """Position in bytes of a slot of ``length`` bytes.

        With ``within_block`` (where ``length`` is at most a block) it crosses no block boundary.
        """
        position = round_up(self._cursor, EROFS_ISLOT_SIZE)
        if within_block and length > self._block_size - position % self._block_size:
            position = round_up(position, self._block_size)
        if position + length > self._open_end:
            if self._open_end != self._free:
                position = self._free
            self._open_end = self._free = round_up(position + length, self._block_size)
        self._cursor = position + length
        return position

    def blocks(self, count: int) -> int:
        """Number of the first of ``count`` neighbouring blocks."""
        first = self._free // self._block_size
        self._free += count * self._block_size
        return first

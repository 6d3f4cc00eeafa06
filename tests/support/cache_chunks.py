"""Chunks whose content follows from a number, so that any process can check what it reads."""

import hashlib
import os
import random
from pathlib import Path

from cache.eviction import charged_bytes
from cache.key import ChunkKey

BLOCK = 4096


def chunk_data(number: int, blocks: int | None = None) -> bytes:
    """The content of chunk ``number``: one to five blocks, the last one not full."""
    generator = random.Random(number)
    size = BLOCK * (blocks or generator.randint(1, 5)) - generator.randrange(100)
    return generator.randbytes(size)


def chunk_key(number: int) -> ChunkKey:
    """The key of chunk ``number``; as in life, the digest need not be that of the content."""
    return ChunkKey("sha512", hashlib.sha512(str(number).encode()).hexdigest(), "data")


def chunk_path(store: Path, number: int) -> Path:
    """Where a store in a folder keeps chunk ``number``."""
    return store / "chunks" / chunk_key(number).relative_path


def charged_on_disk(store: Path) -> int:
    """What all chunk and temporary files really take, in whole blocks; found without the store."""
    total = 0
    for top in ("chunks", "tmp"):
        for folder, _, names in os.walk(store / top):
            for name in names:
                total += charged_bytes(os.lstat(os.path.join(folder, name)).st_size)
    return total

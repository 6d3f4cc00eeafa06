"""The dm-verity superblock (cryptsetup, struct verity_sb; version 1)."""

from typing import Annotated, NamedTuple

from lazyfs.ondisk import U16, U32, U64, Bytes16, Bytes32, Bytes256, Layout

SIGNATURE = b"verity\0\0"
VERSION = 1
MAX_SALT_BYTES = 256


class Superblock(NamedTuple):
    """Little-endian, 512 bytes."""

    signature: Annotated[bytes, "8s"]  # 0x00
    version: U32  # 0x08
    hash_type: U32  # 0x0c  0: hash(block, salt); 1: hash(salt, block)
    uuid: Bytes16  # 0x10
    algorithm: Bytes32  # 0x20  NUL padded
    data_block_size: U32  # 0x40
    hash_block_size: U32  # 0x44
    data_blocks: U64  # 0x48
    salt_size: U16  # 0x50
    pad1: Annotated[bytes, "6s"]  # 0x52
    salt: Bytes256  # 0x58
    pad2: Annotated[bytes, "168s"]  # 0x158


SUPERBLOCK = Layout(Superblock, size_bytes=512)

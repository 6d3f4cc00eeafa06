"""A dm-verity tree of our own behind an image, made from the file and written into it.

Pieces are hashed in any order and their digests written where they belong, level by level.
"""

import dataclasses
from collections.abc import Callable

import trio

from lazyfs.erofs.ondisk import EROFS_SUPER_OFFSET
from lazyfs.erofs.superblock import HEAD_BYTES, decode_superblock
from lazyfs.errors import UnpackError
from lazyfs.layer.contentfile import ContentFile
from lazyfs.layer.pieces import each_piece
from lazyfs.layer.placement import round_up
from lazyfs.unpack.results import Sidecar
from lazyfs.verity.build import tree_uuid
from lazyfs.verity.geometry import geometry
from lazyfs.verity.params import VerityParams, encode_superblock, hash_blocks

ALGORITHM = "sha256"
SALT = bytes(32)
BLOCK_BYTES = 4096


def containerd_params(file: ContentFile, image_size_bytes: int) -> VerityParams:
    """The only form of tree that containerd's mount handler opens.

    Blocks have 4096 bytes, or those of an EROFS image with smaller ones, which the kernel could
    not mount from a device of larger ones.

    Raises:
        ImageFormatError: not an EROFS image.
        UnpackError: too short for one.
    """
    if image_size_bytes < EROFS_SUPER_OFFSET + HEAD_BYTES:
        raise UnpackError(f"an image of {image_size_bytes} bytes cannot have a dm-verity tree")
    superblock = decode_superblock(file.read(EROFS_SUPER_OFFSET, HEAD_BYTES))
    block = min(BLOCK_BYTES, superblock.block_bytes)
    return VerityParams(ALGORITHM, block, block, -(-image_size_bytes // block), SALT)


async def append_tree(
    file: ContentFile,
    image_size_bytes: int,
    params: VerityParams,
    workers: trio.CapacityLimiter,
    on_progress: Callable[[int], None],
) -> Sidecar:
    """Put a tree over the image behind it; what was there is dropped.

    Args:
        file: begins with the image.
        image_size_bytes: of the image.
        params: of the tree, whose data and hash blocks have one size.
        workers: bounds the threads.
        on_progress: told of image bytes done.

    Raises:
        OSError: the disk is full.
    """
    shape = geometry(params)
    block_hash, block, step = params.hasher(), shape.block_size_bytes, params.digest_size_bytes
    start = round_up(image_size_bytes, block)
    file.resize(image_size_bytes)
    file.resize(start + shape.payload_size_bytes)
    below, below_bytes = 0, image_size_bytes
    for number, level in enumerate(shape.levels):

        def hash_piece(offset: int, length: int, number: int = number, below: int = below) -> None:
            digests = hash_blocks(block_hash, block, file.read(below + offset, length))
            where = shape.digests(number, offset // block, len(digests) // step, step)
            file.write(start + where.offset, digests)

        await each_piece(below_bytes, hash_piece, workers, None if number else on_progress)
        below, below_bytes = start + level.first_block * block, level.blocks * block
    root = hash_blocks(block_hash, block, file.read(below, below_bytes))
    params = dataclasses.replace(params, uuid=tree_uuid(params, root))
    file.write(start, encode_superblock(params))
    return Sidecar(root.hex(), start)

"""A dm-verity tree of our own behind an image, made from the file and written into it."""

from collections.abc import Callable, Iterator

import trio

from lazyfs.convert.ordered import map_in_order
from lazyfs.erofs.ondisk import EROFS_SUPER_OFFSET
from lazyfs.erofs.superblock import HEAD_BYTES, decode_superblock
from lazyfs.errors import UnpackError
from lazyfs.layer.contentfile import ContentFile
from lazyfs.layer.pieces import PIECE_BYTES
from lazyfs.layer.placement import round_up
from lazyfs.model import ByteRange
from lazyfs.unpack.results import Sidecar
from lazyfs.verity.build import HashTreeWriter
from lazyfs.verity.params import VerityParams

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
    start = round_up(image_size_bytes, params.data_block_size_bytes)

    def write(offset: int, data: bytes) -> None:
        file.write(start + offset, data)

    tree = HashTreeWriter(
        image_size_bytes,
        write,
        algorithm=params.algorithm,
        block_size_bytes=params.data_block_size_bytes,
        salt=params.salt,
    )
    file.resize(image_size_bytes)
    file.resize(start + tree.payload_size_bytes)

    def hash_piece(where: ByteRange) -> tuple[int, bytes]:
        return where.length, tree.hash_blocks(file.read(*where))

    async def take(hashed: tuple[int, bytes]) -> None:
        length, digests = hashed
        await trio.to_thread.run_sync(tree.add_digests, digests, limiter=workers)
        on_progress(length)

    ahead = int(workers.total_tokens)
    await map_in_order(hash_piece, _pieces(image_size_bytes), take, workers=workers, ahead=ahead)
    root, _ = tree.finish()
    return Sidecar(root.hex(), start)


def _pieces(size_bytes: int) -> Iterator[ByteRange]:
    for offset in range(0, size_bytes, PIECE_BYTES):
        yield ByteRange(offset, min(PIECE_BYTES, size_bytes - offset))

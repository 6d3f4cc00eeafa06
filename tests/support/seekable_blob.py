"""Whole layer blobs in memory, from the production writer."""

import hashlib
from typing import NamedTuple

from lazyfs.seekable.annotations import SeekableAnnotations
from lazyfs.seekable.frames import compress_chunk
from lazyfs.seekable.layout import BlobLayout, VerityPayload
from lazyfs.verity.build import HashTreeBuilder


class Blob(NamedTuple):
    """A blob, and what its descriptor says."""

    data: bytes
    annotations: SeekableAnnotations


def make_blob(
    image: bytes,
    chunk_size: int = 4 << 20,
    *,
    verity: bool = True,
    verity_block_size: int = 4096,
    level: int = 3,
) -> Blob:
    """Wrap ``image``."""
    layout = BlobLayout(len(image), chunk_size)
    out = bytearray()
    for start in range(0, len(image), chunk_size):
        frame = compress_chunk(image[start : start + chunk_size], level)
        layout.add_frame(len(frame), hashlib.sha512(frame).digest())
        out += frame
    payload = None
    if verity:
        builder = HashTreeBuilder(block_size_bytes=verity_block_size)
        builder.add(image)
        tree = builder.finish()
        payload = VerityPayload(tree.payload, tree.root_digest)
    tail = layout.finish(payload)
    return Blob(bytes(out) + b"".join(tail.pieces), tail.annotations)

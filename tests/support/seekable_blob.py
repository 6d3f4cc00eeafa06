"""Whole layer blobs in memory, from the production writer."""

import hashlib
from typing import NamedTuple

from lazyfs.seekable.annotations import SeekableAnnotations, parse_annotations
from lazyfs.seekable.frames import compress_chunk
from lazyfs.seekable.layout import ContainerdLayout, VerityTree
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
    layout = ContainerdLayout(chunk_size)
    out = bytearray()
    for start in range(0, len(image), chunk_size):
        frame = compress_chunk(image[start : start + chunk_size], level)
        chunk_bytes = len(image[start : start + chunk_size])
        layout.add_frame(chunk_bytes, len(frame), hashlib.sha512(frame).digest())
        out += frame
    payload, described = b"", None
    if verity:
        builder = HashTreeBuilder(block_size_bytes=verity_block_size)
        builder.add(image)
        tree = builder.finish()
        payload = tree.payload
        described = VerityTree(len(payload), tree.root_digest, verity_block_size)
    tail = layout.finish(hashlib.sha256(image).hexdigest(), described)
    annotations = parse_annotations(tail.annotations)
    assert annotations is not None
    return Blob(bytes(out) + b"".join(tail.pieces) + payload, annotations)

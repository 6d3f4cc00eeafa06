"""Where content and dm-verity tree lie in the file of a materialised layer.

As containerd has it: the image, zeros up to a multiple of the block size, then the tree as it
comes. A tree that is part of the content already lies there.
"""

from lazyfs.layer.metadata import LayerMetadata, VerityMetadata


def round_up(offset: int, block_bytes: int) -> int:
    """The next multiple of a block size."""
    return -(-offset // block_bytes) * block_bytes


def payload_offset(metadata: LayerMetadata, verity: VerityMetadata) -> int:
    """Where the tree's superblock lies in the file."""
    if verity.in_content:
        return verity.payload.offset
    params = verity.params
    block = max(params.data_block_size_bytes, params.hash_block_size_bytes)
    return round_up(metadata.image_size_bytes, block)


def file_size(metadata: LayerMetadata) -> int:
    """Length of the file with the layer's own tree."""
    verity = metadata.verity
    if verity is None or verity.in_content:
        return metadata.table.content_size_bytes
    # containerd writes no padding behind the superblock of a tree over a single block, but
    # the kernel wants whole blocks.
    payload_bytes = round_up(verity.payload.length, verity.params.hash_block_size_bytes)
    return payload_offset(metadata, verity) + payload_bytes

"""The builder against veritysetup, byte for byte."""

import random

import pytest

from lazyfs.errors import ImageFormatError
from lazyfs.verity.build import HashTreeBuilder, HashTreeWriter
from tests.support import verity_oracle

COUNTS = (1, 2, 63, 64, 65, 2125, 4097)


def noise(blocks: int, size: int) -> bytes:
    return random.Random(blocks * size).randbytes(blocks * size)


@pytest.mark.parametrize("size", [512, 1024, 4096])
@pytest.mark.parametrize("count", COUNTS)
def test_payload_equals_veritysetup(tmp_path, size, count):
    data = noise(count, size)
    builder = HashTreeBuilder(block_size_bytes=size)
    builder.add(data)
    tree = builder.finish()
    assert tree.params.data_blocks == count
    root, payload = verity_oracle.format_tree(tmp_path, data, tree.params)
    assert tree.root_digest == root
    assert tree.payload == payload


@pytest.mark.parametrize("hash_type", [0, 1])
@pytest.mark.parametrize("salt", [b"", b"\x01", bytes(32), b"s" * 256])
def test_sha256_with_salt_equals_veritysetup(tmp_path, hash_type, salt):
    data = noise(300, 1024)
    builder = HashTreeBuilder(
        algorithm="sha256", block_size_bytes=1024, salt=salt, hash_type=hash_type
    )
    builder.add(data)
    tree = builder.finish()
    assert (tree.root_digest, tree.payload) == verity_oracle.format_tree(
        tmp_path, data, tree.params
    )


def test_one_file_with_image_and_tree_verifies(tmp_path):
    data = noise(2125, 4096)
    builder = HashTreeBuilder()
    builder.add(data)
    tree = builder.finish()
    assert 8 + len(tree.payload) == 147464
    device = tmp_path / "layer.erofs"
    device.write_bytes(data + tree.payload)
    assert verity_oracle.accepts(device, len(data), tree.root_digest)
    device.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) + tree.payload)
    assert not verity_oracle.accepts(device, len(data), tree.root_digest)


def test_pieces_of_any_length_give_the_same_tree():
    data = noise(70, 512) + b"a short end"
    whole = HashTreeBuilder(block_size_bytes=512)
    whole.add(data)
    pieces = HashTreeBuilder(block_size_bytes=512)
    chooser = random.Random(7)
    position = 0
    while position < len(data):
        step = chooser.choice([1, 511, 512, 513, 3000])
        pieces.add(data[position : position + step])
        position += step
    payload = bytearray(whole_size := len(whole.finish().payload))

    def write(offset: int, blocks: bytes) -> None:
        payload[offset : offset + len(blocks)] = blocks

    spread = HashTreeWriter(len(data), write, block_size_bytes=512)
    for start in range(0, len(data), 1024):
        spread.add_digests(spread.hash_blocks(data[start : start + 1024]))
    padded = HashTreeBuilder(block_size_bytes=512)
    padded.add(data.ljust(71 * 512, b"\0"))
    expected = whole.finish()
    assert pieces.finish() == expected
    root_digest, params = spread.finish()
    assert (root_digest, bytes(payload), params) == expected
    assert spread.payload_size_bytes == len(payload) == whole_size
    assert padded.finish() == expected


def test_uuid_is_never_zero_and_differs_between_trees():
    trees = []
    for content in (bytes(4096), b"x" * 4096):
        builder = HashTreeBuilder()
        builder.add(content)
        trees.append(builder.finish())
    assert trees[0].params.uuid != trees[1].params.uuid
    assert bytes(16) not in {tree.params.uuid for tree in trees}


def test_no_data_has_no_tree():
    with pytest.raises(ImageFormatError, match="0 data blocks"):
        HashTreeBuilder().finish()

"""The superblock: what is read, what is refused."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import ImageFormatError, LazyfsError, UnsupportedFeatureError
from lazyfs.verity.geometry import geometry
from lazyfs.verity.params import VerityParams, decode_superblock, encode_superblock

PARAMS = VerityParams(
    algorithm="sha512",
    data_block_size_bytes=4096,
    hash_block_size_bytes=1024,
    data_blocks=2125,
    salt=b"salt",
    uuid=bytes(range(16)),
)


def test_superblock_round_trip():
    assert decode_superblock(encode_superblock(PARAMS)) == PARAMS


@pytest.mark.parametrize(
    ("offset", "value", "error"),
    [
        (0, b"Verity", ImageFormatError),
        (8, b"\2", UnsupportedFeatureError),
        (12, b"\2", UnsupportedFeatureError),
        (32, b"sha1\0\0", UnsupportedFeatureError),
        (32, b"\xff", UnsupportedFeatureError),
        (64, b"\0\0\0\0", ImageFormatError),
        (64, b"\0\1\0\0", ImageFormatError),
        (68, b"\1\2\0\0", ImageFormatError),
        (68, b"\0\0\x10\0", ImageFormatError),
        (72, bytes(8), ImageFormatError),
        (72, b"\xff" * 8, ImageFormatError),
        (80, b"\1\1", ImageFormatError),
    ],
)
def test_broken_superblock_is_refused(offset, value, error):
    raw = bytearray(encode_superblock(PARAMS))
    raw[offset : offset + len(value)] = value
    with pytest.raises(error):
        decode_superblock(bytes(raw))


def test_tree_must_cover_the_image():
    PARAMS.check_covers(2125 * 4096)
    PARAMS.check_covers(2124 * 4096 + 1)
    for size in (2124 * 4096, 2125 * 4096 + 1, 0):
        with pytest.raises(ImageFormatError, match="dm-verity tree over 2125"):
            PARAMS.check_covers(size)


def test_geometry_of_the_worked_example():
    shape = geometry(dataclasses.replace(PARAMS, hash_block_size_bytes=4096))
    assert [level.blocks for level in shape.levels] == [34, 1]
    assert [level.first_block for level in shape.levels] == [2, 1]
    assert shape.payload_size_bytes == 36 * 4096


@given(st.binary(max_size=600), st.booleans())
def test_any_bytes_give_parameters_or_an_error(data, signed):
    raw = b"verity\0\0\1\0\0\0\1\0\0\0" + data if signed else data
    try:
        params = decode_superblock(raw)
    except LazyfsError:
        return
    assert geometry(params).levels


@given(st.integers(0, 511), st.integers(0, 255))
def test_one_changed_byte_gives_parameters_or_an_error(offset, value):
    raw = bytearray(encode_superblock(PARAMS))
    raw[offset] = value
    try:
        params = decode_superblock(bytes(raw))
    except LazyfsError:
        return
    assert len(geometry(params).levels) < 64

"""Random and broken images: errors are fine, anything else is a bug.

LAZYFS_FUZZ_EXAMPLES sets how many inputs each test tries; a few by default.
"""

import os
import random
from contextlib import suppress
from functools import cache
from typing import Any

import lz4.block  # type: ignore[import-untyped]
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lazyfs.erofs import ondisk
from lazyfs.erofs.compressed.codecs import decompress
from lazyfs.erofs.compressed.lz4prefix import decode_prefix
from lazyfs.erofs.directory import DirectoryBlock
from lazyfs.erofs.image import Inode
from lazyfs.erofs.superblock import HEAD_BYTES, decode_superblock
from lazyfs.errors import ImageFormatError, LazyfsError
from tests.support.erofs_files import ImageFiles, golden_devices, golden_names, sealed

EXAMPLES = int(os.environ.get("LAZYFS_FUZZ_EXAMPLES", "150"))
MOST_NEEDS = 100_000
"""A survey of a sound image makes some 10,000 requests."""

fuzz = settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
MAGIC = ondisk.EROFS_SUPER_MAGIC_V1.to_bytes(4, "little")


@cache
def touched(name: str) -> list[int]:
    """Offsets of all bytes that a survey of the sound image looks at, 8 bytes apart."""
    files = ImageFiles(golden_devices(name))
    assert files.survey() > 1000
    ranges = {(need.offset, need.length) for need in files.asked if not need.device}
    return sorted({at for start, length in ranges for at in range(start, start + length, 8)})


def survey(name: str, image: bytearray, *, checksum: bool = True) -> None:
    devices = golden_devices(name)
    devices[0] = sealed(image) if checksum else bytes(image)
    try:
        files = ImageFiles(devices, most_needs=MOST_NEEDS)
    except LazyfsError:
        return
    files.survey()


@fuzz
@given(st.binary(min_size=HEAD_BYTES, max_size=HEAD_BYTES), st.integers(9, 16))
def test_random_superblocks(head: bytes, block_bits: int) -> None:
    with suppress(ImageFormatError):
        decode_superblock(head)
    likely = bytearray(MAGIC + head[4:])
    likely[0x0C] = block_bits
    likely[0x50:0x54] = (head[0x50] | (head[0x51] & 1) << 8).to_bytes(4, "little")
    likely[0x5A] = 0
    likely[0x57] = 0
    image = bytearray(1024) + likely + bytes(1 << 17)
    try:
        files = ImageFiles([sealed(image)], most_needs=MOST_NEEDS)
    except LazyfsError:
        return
    files.survey()


@fuzz
@given(st.sampled_from(golden_names()), st.randoms(use_true_random=False))
def test_flipped_bits(name: str, rng: random.Random) -> None:
    image = bytearray(golden_devices(name)[0])
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        image[rng.choice(touched(name)) + rng.randrange(8)] ^= 1 << rng.randrange(8)
    survey(name, image)


@fuzz
@given(st.sampled_from(golden_names()), st.randoms(use_true_random=False))
def test_fields_with_other_numbers(name: str, rng: random.Random) -> None:
    image = bytearray(golden_devices(name)[0])
    for _ in range(rng.choice((1, 1, 2))):
        width = rng.choice((1, 2, 4, 8))
        offset = rng.choice(touched(name)) + rng.randrange(0, 8, width)
        old = int.from_bytes(image[offset : offset + width], "little")
        top = 1 << 8 * width
        new = rng.choice((0, 1, top - 1, top // 2, old + 1, old - 1, old * 2, rng.randrange(top)))
        image[offset : offset + width] = (new % top).to_bytes(width, "little")
    survey(name, image)


@fuzz
@given(st.sampled_from(golden_names()), st.randoms(use_true_random=False))
def test_superblock_fields_with_other_numbers(name: str, rng: random.Random) -> None:
    image = bytearray(golden_devices(name)[0])
    for _ in range(rng.choice((1, 2))):
        offset = 1024 + rng.randrange(8, 144)
        image[offset] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, image[offset] ^ 1 << rng.randrange(8)))
    survey(name, image)


@fuzz
@given(st.sampled_from(golden_names()), st.randoms(use_true_random=False))
def test_records_in_the_place_of_others(name: str, rng: random.Random) -> None:
    image = bytearray(golden_devices(name)[0])
    for _ in range(rng.choice((1, 4, 16))):
        source, target = (rng.choice(touched(name)) & ~31 for _ in range(2))
        length = rng.choice((32, 64, 512))
        image[target : target + length] = image[source : source + length]
    survey(name, image[: len(golden_devices(name)[0])])


@fuzz
@given(st.sampled_from(golden_names()), st.floats(0, 1))
def test_truncated_images(name: str, part: float) -> None:
    image = golden_devices(name)[0]
    survey(name, bytearray(image[: int(len(image) * part)]), checksum=False)


@fuzz
@given(st.binary(max_size=300), st.binary(max_size=20))
def test_random_directory_blocks(data: bytes, name: bytes) -> None:
    directory = Inode(*([0] * 13))  # type: ignore[arg-type]
    for block in (data, bytes(8) + b"\x24\0" + data):
        try:
            parsed = DirectoryBlock(directory, 0, block)
            parsed.find(name)
            entries = parsed.entries(0, None)
        except ImageFormatError:
            continue
        names = [entry.name for entry in entries]
        assert names == sorted(set(names))
        assert all(parsed.find(name) in entries for name in names)


@fuzz
@given(
    st.sampled_from(range(5)),
    st.binary(min_size=1, max_size=400),
    st.integers(1, 5000),
    st.booleans(),
    st.booleans(),
)
def test_random_pclusters(
    algorithm: int, stored: bytes, length: int, partial: bool, padded: bool
) -> None:
    magic = {1: b"\xa2", 3: b"\x28\xb5\x2f\xfd"}.get(algorithm, b"")
    for data in (stored, magic + stored):
        try:
            result = decompress(algorithm, data, length, partial=partial, padded=padded)
        except ImageFormatError:
            continue
        assert len(result) == length


@st.composite
def lz4_samples(draw: Any) -> bytes:
    pieces = draw(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=8))
    order = draw(st.lists(st.integers(0, len(pieces) - 1), min_size=1, max_size=60))
    return b"".join(pieces[number] * (1 + number * 9) for number in order)


@fuzz
@given(lz4_samples(), st.floats(0, 1), st.binary(max_size=30))
def test_lz4_prefixes_are_what_liblz4_decodes(sample: bytes, part: float, tail: bytes) -> None:
    block = lz4.block.compress(sample, store_size=False)
    length = max(1, int(len(sample) * part))
    assert decode_prefix(block + tail, length) == sample[:length]
    padded = bytes(7) + block
    assert decompress(0, padded, length, partial=True, padded=True) == sample[:length]
    assert decompress(0, padded, len(sample), partial=False, padded=True) == sample


@pytest.mark.parametrize("name", golden_names())
def test_each_byte_of_the_superblock(name: str) -> None:
    sound = golden_devices(name)[0]
    for offset in range(8, 144):
        image = bytearray(sound)
        image[1024 + offset] ^= 0xFF
        devices = [sealed(image), *golden_devices(name)[1:]]
        try:
            files = ImageFiles(devices, most_needs=MOST_NEEDS)
            root = files.run(files.image.inode(files.image.root_nid))
            files.run(files.image.entries(root, 0))
            files.run(files.image.xattrs(root))
        except LazyfsError:
            continue

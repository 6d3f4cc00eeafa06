"""The chunk table: what containerd wrote, what we write, and what must be refused."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import (
    DigestMismatchError,
    ImageFormatError,
    LazyfsError,
    UnsupportedFeatureError,
)
from lazyfs.model import ByteRange
from lazyfs.seekable.annotations import parse_annotations
from lazyfs.seekable.chunktable import MAX_TABLE_BYTES, ChunkTable
from lazyfs.seekable.containerdtable import encode_containerd_table
from lazyfs.seekable.frames import decompress_chunk, verify_frame
from lazyfs.seekable.skippable import decode_skippable_header, encode_skippable_header
from lazyfs.seekable.tables import check_table_digest, decode_table
from lazyfs.verity.params import decode_superblock
from lazyfs.verity.trusted import TrustedHashTree

DATA = Path(__file__).parent.parent / "data" / "containerd-seekable"
LAYERS = json.loads((DATA / "layers.json").read_text())

CHUNK = 1000
OFFSETS = [0, 90, 200]
DIGESTS = [bytes([n]) * 64 for n in range(3)]
TABLE_OFFSET = 260


def table(**changes) -> bytes:
    values: dict[str, Any] = {
        "image_size_bytes": 2500,
        "chunk_size_bytes": CHUNK,
        "frame_offsets": OFFSETS,
        "digests": DIGESTS,
    }
    return encode_containerd_table(**(values | changes))


@pytest.mark.parametrize("name", LAYERS)
def test_blob_that_containerd_wrote(name):
    blob = (DATA / f"{name}.blob").read_bytes()
    annotations = parse_annotations(LAYERS[name]["annotations"])
    assert annotations is not None
    pointers = annotations.pointers(len(blob))
    assert pointers.table is not None
    space = pointers.table.where
    frame = blob[space.offset : space.end]
    size = decode_skippable_header(frame, limit_bytes=space.length - 8)
    payload = frame[8 : 8 + size]
    assert len(frame) == 8 + size
    check_table_digest(payload, annotations.chunk_digest)
    chunks = decode_table(payload, chunks_end=space.offset)
    image = b""
    for index in range(len(chunks)):
        where = chunks.frame(index)
        compressed = blob[where.offset : where.end]
        verify_frame(compressed, chunks.digest(index) or b"")
        image += decompress_chunk(compressed, chunks.chunk(index).length)
    assert len(image) == chunks.content_size_bytes
    assert f"sha256:{hashlib.sha256(image).hexdigest()}" == LAYERS[name]["diff_id"]
    if pointers.tree is not None:
        frame = blob[pointers.tree.offset :]
        payload = frame[8:]
        assert decode_skippable_header(frame, limit_bytes=len(payload)) == len(payload)
        params = decode_superblock(payload)
        params.check_covers(len(image))
        tree = TrustedHashTree(params, pointers.tree.root_digest)
        for needed in tree.missing(0, params.data_blocks):
            tree.add(needed, payload[needed.offset : needed.end])
        tree.verify(0, image)


def test_table_of_many_chunks_that_containerd_wrote():
    payload = (DATA / "table37.frame").read_bytes()[8:]
    chunks = decode_table(payload, chunks_end=1730358)
    assert len(chunks) == 37
    assert chunks.frame(0).offset == 0
    assert chunks.frame(36).end == 1730358
    assert chunks.chunk(36).end == chunks.content_size_bytes == 588 * 4096
    for index in range(37):
        where = chunks.chunk(index)
        assert chunks.index_at(where.offset) == chunks.index_at(where.end - 1) == index
        if index:
            assert chunks.frame(index - 1).end == chunks.frame(index).offset
    again = encode_containerd_table(
        image_size_bytes=chunks.content_size_bytes,
        chunk_size_bytes=65536,
        frame_offsets=[chunks.frame(index).offset for index in range(37)],
        digests=[chunks.digest(index) or b"" for index in range(37)],
    )
    assert again == payload


def test_own_table():
    chunks = decode_table(table(), chunks_end=TABLE_OFFSET)
    assert [chunks.frame(index) for index in range(3)] == [(0, 90), (90, 110), (200, 60)]
    assert [chunks.chunk(index) for index in range(3)] == [(0, 1000), (1000, 1000), (2000, 500)]
    assert [chunks.digest(index) for index in range(3)] == DIGESTS
    assert [chunks.index_at(at) for at in (0, 999, 1000, 2499)] == [0, 0, 1, 2]
    assert chunks.chunk(2) == ByteRange(2000, 500)
    for outside in (-1, 2500):
        with pytest.raises(AssertionError, match="not in the image"):
            chunks.index_at(outside)


def test_table_without_digests():
    chunks = decode_table(table(digests=None), chunks_end=TABLE_OFFSET)
    assert [chunks.frame(index).length for index in range(3)] == [90, 110, 60]
    assert chunks.digest(1) is None


def test_empty_image():
    payload = encode_containerd_table(
        image_size_bytes=0, chunk_size_bytes=1, frame_offsets=[], digests=[]
    )
    assert len(payload) == 23
    assert len(decode_table(payload, chunks_end=0)) == 0
    with pytest.raises(ImageFormatError, match="begins at 7"):
        decode_table(payload, chunks_end=7)


def changed(at: int, form: str, value: int) -> bytes:
    raw = bytearray(table())
    struct.pack_into(form, raw, at, value)
    return bytes(raw)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "not a chunk table"),
        (table()[:22], "needs 23 bytes"),
        (table()[:-1], "3 chunks need 239"),
        (table() + b"\0", "3 chunks need 239"),
        (changed(4, "<I", 2), "version 2"),
        (changed(8, "<Q", 3001), "4 chunks need"),
        (changed(8, "<Q", 2**64 - 1), "chunks need"),
        # 2**32 entries of 72 bytes too many: equal only in 32-bit arithmetic.
        (changed(8, "<Q", (2**32 // 8 + 3) * CHUNK), "chunks need"),
        (changed(16, "<I", 0), "chunk size is 0"),
        (changed(16, "<I", 800), "4 chunks need"),
        (changed(20, "<B", 2), "hash algorithm 2"),
        (changed(20, "<B", 0), "chunks need"),
        (changed(21, "<H", 1), "reserved"),
        (changed(23, "<Q", 1), "first frame begins at 1"),
        (changed(23 + 72, "<Q", 0), "frame 0 begins at 0 and ends at 0"),
        (changed(23 + 72, "<Q", 200), "frame 1 begins at 200 and ends at 200"),
        (changed(23 + 72, "<Q", 201), "frame 1 begins"),
        (changed(23 + 144, "<Q", TABLE_OFFSET), "frame 2 begins at 260 and ends at 260"),
        (changed(23 + 144, "<Q", 2**64 - 1), "frame 1 begins"),
    ],
)
def test_hostile_tables_are_refused(payload, message):
    with pytest.raises(ImageFormatError, match=message):
        decode_table(payload, chunks_end=TABLE_OFFSET)


def test_limits_are_named():
    huge = struct.pack("<IIQIBH", 0xCDE4EC67, 1, 2**33, 2**32 - 1, 1, 0)
    with pytest.raises(UnsupportedFeatureError, match="at most 67108864 are supported"):
        decode_table(huge, chunks_end=1)
    with pytest.raises(ImageFormatError, match=r"frame 2 of .* at most"):
        decode_table(table(), chunks_end=10**9)
    with pytest.raises(ImageFormatError, match=f"at most {MAX_TABLE_BYTES}"):
        decode_table(bytes(MAX_TABLE_BYTES + 1), chunks_end=1)
    with pytest.raises(ImageFormatError, match="chunk table at offset"):
        decode_table(table(), chunks_end=2**63)


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (bytes.fromhex("cde4ec67 01000000") + bytes(24), "draft"),
        (bytes(17) + bytes.fromhex("01000000 00 b1ea928f"), "zstd seekable format"),
    ],
)
def test_look_alikes_are_named(payload, name):
    with pytest.raises(UnsupportedFeatureError, match=name):
        decode_table(payload, chunks_end=TABLE_OFFSET)


def test_skippable_header():
    assert encode_skippable_header(5) == bytes.fromhex("502a4d18 05000000")
    for magic in (0x50, 0x5E, 0x5F):
        assert decode_skippable_header(bytes([magic, 0x2A, 0x4D, 0x18, 7, 0, 0, 0, 9])) == 7
    for first in (0x4F, 0x60, 0x28):
        with pytest.raises(ImageFormatError, match="not a skippable frame"):
            decode_skippable_header(bytes([first, 0x2A, 0x4D, 0x18, 7, 0, 0, 0]))
    with pytest.raises(ImageFormatError, match="at most 6"):
        decode_skippable_header(encode_skippable_header(7), limit_bytes=6)
    with pytest.raises(ImageFormatError, match="at most 134217728"):
        decode_skippable_header(encode_skippable_header(2**32 - 1))
    with pytest.raises(ImageFormatError, match="needs 8 bytes"):
        decode_skippable_header(b"\x50\x2a\x4d\x18\0\0\0")
    with pytest.raises(ImageFormatError, match="at most 4294967295"):
        encode_skippable_header(2**32)


def test_digest_of_the_table_is_checked():
    payload = table()
    check_table_digest(payload, hashlib.sha512(payload).digest())
    for bit in (0, 8 * len(payload) - 1):
        flipped = bytearray(payload)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DigestMismatchError, match=r"wanted sha512:.*found sha512:"):
            check_table_digest(bytes(flipped), hashlib.sha512(payload).digest())


def check_invariants(payload: bytes, table_offset: int) -> None:
    """Whatever decodes must describe frames and chunks without gap or overlap."""
    try:
        chunks = decode_table(payload, chunks_end=table_offset)
    except LazyfsError:
        return
    frame_end = chunk_end = 0
    for index in range(len(chunks)):
        frame, chunk = chunks.frame(index), chunks.chunk(index)
        assert (frame.offset, chunk.offset) == (frame_end, chunk_end)
        assert frame.length > 0
        assert chunk.length > 0
        frame_end, chunk_end = frame.end, chunk.end
    assert frame_end == table_offset
    assert chunk_end == chunks.content_size_bytes


@given(st.binary(max_size=400), st.booleans(), st.integers(0, 2**64))
def test_any_bytes_decode_or_are_refused(data, signed, table_offset):
    check_invariants(b"\x67\xec\xe4\xcd\1\0\0\0" + data if signed else data, table_offset)


@given(
    st.lists(st.tuples(st.integers(0, len(table()) - 1), st.integers(0, 255)), max_size=3),
    st.sampled_from([TABLE_OFFSET, 201, 200]),
)
def test_changed_tables_decode_or_are_refused(changes, table_offset):
    raw = bytearray(table())
    for at, value in changes:
        raw[at] = value
    check_invariants(bytes(raw), table_offset)


@given(st.binary(max_size=12))
def test_any_header_gives_a_size_or_an_error(data):
    try:
        size = decode_skippable_header(data)
    except LazyfsError:
        return
    assert 0 <= size <= MAX_TABLE_BYTES


def test_the_chunks_that_fill_a_range_of_the_blob_exactly():
    table = ChunkTable(50, range(0, 50, 10), [0, 7, 12, 20, 31, 40], None)
    for first in range(5):
        for end in range(first + 1, 6):
            start = table.frame(first).offset
            stop = table.frame(end - 1).end
            assert table.filling(ByteRange(start, stop - start)) == range(first, end)
    for cut in ((0, 6), (1, 6), (7, 6), (31, 20), (40, 5), (41, 5)):
        assert not table.filling(ByteRange(*cut))

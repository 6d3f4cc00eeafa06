"""Whole blobs: the worked numbers, the zstd tool, and finding the metadata without annotations."""

import random
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import ImageFormatError, LazyfsError
from lazyfs.model import ByteRange
from lazyfs.seekable.annotations import CHUNK_TABLE_OFFSET, VERITY_OFFSET, SeekableAnnotations
from lazyfs.seekable.frames import compress_chunk
from lazyfs.seekable.skippable import decode_skippable_header
from lazyfs.seekable.tables import check_table_digest, decode_table
from lazyfs.seekable.walk import find_metadata, walk_frames
from lazyfs.steps import Need, run
from lazyfs.verity.params import decode_superblock
from lazyfs.verity.trusted import TrustedHashTree
from tests.support.seekable_blob import Blob, make_blob

DATA = Path(__file__).parent.parent / "data" / "containerd-seekable"
ALPINE_SIZE = 2125 * 4096


def image(size: int) -> bytes:
    chooser = random.Random(size)
    return (chooser.randbytes(max(1, size // 3)) * 4)[:size]


def metadata(data: bytes):
    def read(need: Need) -> bytes:
        assert need.offset + need.length <= len(data)
        return data[need.offset : need.offset + need.length]

    return run(find_metadata(len(data)), read)


def listed_frames(path: Path) -> tuple[int, int]:
    """Zstd frames and skippable frames, as ``zstd -l`` counts them."""
    text = subprocess.run(["zstd", "-lv", path], check=True, capture_output=True, text=True).stdout
    frames = re.search(r"# Zstandard Frames: (\d+)", text)
    skippable = re.search(r"# Skippable Frames: (\d+)", text)
    assert frames is not None
    return int(frames[1]), int(skippable[1]) if skippable is not None else 0


def test_worked_example_of_the_format():
    blob = make_blob(image(ALPINE_SIZE))
    at = blob.annotations
    assert at.verity_offset is not None
    assert at.verity_offset - at.chunk_table_offset == 247
    assert len(blob.data) - at.verity_offset == 147464
    assert blob.data[at.chunk_table_offset :][:12].hex() == "502a4d18" + "ef000000" + "67ece4cd"
    assert blob.data[at.verity_offset + 8 :][:8] == b"verity\0\0"
    assert at.encode()[CHUNK_TABLE_OFFSET] == str(at.chunk_table_offset)
    assert at.encode()[VERITY_OFFSET] == str(at.verity_offset)


@pytest.mark.parametrize(
    ("size", "chunk_size", "frames"),
    [(50, 4 << 20, 1), (65536, 65536, 1), (65536 * 3, 65536, 3), (65536 * 4 + 123, 65536, 5)],
)
@pytest.mark.parametrize("verity", [False, True])
def test_the_zstd_tool_restores_the_image(tmp_path, size, chunk_size, frames, verity):
    content = image(size)
    blob = make_blob(content, chunk_size, verity=verity)
    path = tmp_path / "blob.zst"
    path.write_bytes(blob.data)
    out = subprocess.run(["zstd", "-dc", path], check=True, capture_output=True).stdout
    assert out == content
    assert listed_frames(path) == (frames, 2 if verity else 1)


def test_empty_image_without_verity():
    blob = make_blob(b"", verity=False)
    assert len(blob.data) == 31
    assert len(decode_table(blob.data[8:], chunks_end=0)) == 0


def test_same_input_same_bytes():
    assert make_blob(image(300_000), 65536) == make_blob(image(300_000), 65536)


def check_found(blob: Blob) -> None:
    found = metadata(blob.data)
    pointers = blob.annotations.pointers(len(blob.data))
    assert pointers.table is not None
    assert found.chunk_table == pointers.table.where
    verity = blob.annotations.verity_offset
    assert found.verity == (None if verity is None else ByteRange(verity, len(blob.data) - verity))
    payload = blob.data[found.chunk_table.offset + 8 : found.chunk_table.end]
    check_table_digest(payload, blob.annotations.chunk_digest)


@pytest.mark.parametrize("verity", [False, True])
@pytest.mark.parametrize("level", [-7, 3, 19])
def test_metadata_is_found_by_walking(verity, level):
    check_found(make_blob(image(700_001), 200_000, verity=verity, level=level))
    check_found(make_blob(bytes(700_001), 200_000, verity=verity, level=level))


def test_metadata_is_found_in_containerds_blob():
    assert metadata((DATA / "verity4096.blob").read_bytes()) == (
        ByteRange(381, 103),
        ByteRange(484, 8200),
    )
    assert metadata((DATA / "plain.blob").read_bytes()) == (ByteRange(381, 103), None)


def test_plain_zstd_has_no_metadata():
    assert metadata(compress_chunk(image(400_000))) is None


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 100, 9000])
def test_cut_blobs_are_refused(cut):
    blob = make_blob(image(20_000), 4096).data
    with pytest.raises(ImageFormatError):
        metadata(blob[:-cut])


@given(st.binary(max_size=100))
def test_walking_any_bytes_ends(data):
    try:
        spans = run(
            walk_frames(len(data)), lambda need: data[need.offset : need.offset + need.length]
        )
    except LazyfsError:
        return
    assert sum(span.where.length for span in spans) == len(data)


BLOB = make_blob(image(9000), 4096, verity_block_size=512)


@given(st.integers(0, len(BLOB.data) - 1), st.integers(0, 255))
def test_walking_a_changed_blob_ends(at, value):
    data = bytearray(BLOB.data)
    data[at] = value
    try:
        spans = run(
            walk_frames(len(data)),
            lambda need: bytes(data[need.offset : need.offset + need.length]),
        )
    except LazyfsError:
        return
    assert sum(span.where.length for span in spans) == len(data)


def read_all(data: bytes, annotations: SeekableAnnotations) -> bytes:
    """The image by way of every check that a mount makes."""
    pointers = annotations.pointers(len(data))
    assert pointers.table is not None
    space = pointers.table.where
    size = decode_skippable_header(data[space.offset : space.end], limit_bytes=space.length - 8)
    payload = data[space.offset + 8 : space.offset + 8 + size]
    check_table_digest(payload, annotations.chunk_digest)
    chunks = decode_table(payload, chunks_end=pointers.chunks_end)
    image = b""
    for index in range(len(chunks)):
        where = chunks.frame(index)
        chunks.verify(index, data[where.offset : where.end])
        image += chunks.decode(index, data[where.offset : where.end])
    assert pointers.tree is not None
    assert annotations.root_digest is not None
    room = len(data) - pointers.tree.offset
    header = data[pointers.tree.offset : pointers.tree.offset + 8]
    size = decode_skippable_header(header, limit_bytes=room - 8)
    hashes = data[pointers.tree.offset + 8 : pointers.tree.offset + 8 + size]
    params = decode_superblock(hashes)
    params.check_covers(len(image))
    tree = TrustedHashTree(params, annotations.root_digest)
    if len(hashes) < tree.payload_size_bytes:
        raise ImageFormatError("short")
    for needed in tree.missing(0, params.data_blocks):
        tree.add(needed, hashes[needed.offset : needed.end])
    tree.verify(0, image)
    return image


def test_a_flipped_bit_anywhere_never_gives_wrong_bytes():
    content = image(5000)
    data, annotations = make_blob(content, 2048, verity_block_size=512)
    assert read_all(data, annotations) == content
    harmless = 0
    for at in range(len(data)):
        broken = bytearray(data)
        broken[at] ^= 1 << at % 8
        try:
            read = read_all(bytes(broken), annotations)
        except LazyfsError:
            continue
        assert read == content
        harmless += 1
    # Only the low bits of the two magics, the UUID and padding of the superblock prove nothing.
    assert harmless <= 512 + 2


def test_unknown_blocks_and_headers_are_refused_on_a_walk():
    frame = bytes.fromhex("28b52ffd 00 58")
    for data in (frame[:4], frame, frame + b"\x07\0\0", frame + b"\xff\0\0", b"\0" * 20):
        with pytest.raises(ImageFormatError):
            metadata(data)


def test_walking_has_a_limit(monkeypatch):
    monkeypatch.setattr("lazyfs.seekable.walk.MAX_FRAMES", 3)
    empty = bytes.fromhex("502a4d18 00000000")
    assert metadata(empty * 3) is None
    with pytest.raises(ImageFormatError, match="more than 3 frames"):
        metadata(empty * 4)

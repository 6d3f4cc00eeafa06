"""Frames: one frame exactly, its content exactly, nothing beyond."""

import hashlib
import random
import struct
import subprocess

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import DigestMismatchError, ImageFormatError
from lazyfs.seekable.frames import compress_chunk, decompress_chunk, verify_frame

CHUNK = random.Random(3).randbytes(150_000) * 2
SKIPPABLE = bytes.fromhex("502a4d18 01000000 00")


def streamed(data: bytes, *, checksum: bool = True, empty_last_block: bool = False) -> bytes:
    """A frame without content size, as containerd's encoder makes them."""
    compressor = zstandard.ZstdCompressor(
        write_content_size=False, write_checksum=checksum
    ).compressobj()
    frame = compressor.compress(data)
    if empty_last_block:
        frame += compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    return frame + compressor.flush()


def bomb(content_size: int | None) -> bytes:
    """A frame of 8000 blocks that repeat one byte 128 KiB long each: a gigabyte."""
    head = b"\x28\xb5\x2f\xfd"
    head += b"\x00\x58" if content_size is None else b"\xc0\x58" + struct.pack("<Q", content_size)
    block = (1 << 17 << 3 | 1 << 1).to_bytes(3, "little") + b"x"
    last = (1 << 17 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"x"
    return head + block * 7999 + last


def test_round_trip_and_the_zstd_tool(tmp_path):
    frame = compress_chunk(CHUNK)
    assert decompress_chunk(frame, len(CHUNK)) == CHUNK
    assert frame == compress_chunk(memoryview(CHUNK))
    out = subprocess.run(["zstd", "-dc"], input=frame, capture_output=True, check=True).stdout
    assert out == CHUNK
    assert zstandard.get_frame_parameters(frame).has_checksum


@pytest.mark.parametrize("level", [-5, 1, 19])
def test_levels(level):
    assert decompress_chunk(compress_chunk(CHUNK, level), len(CHUNK)) == CHUNK


@pytest.mark.parametrize("length", [1, 255, 131_071, 131_072, 262_144, 300_000])
@pytest.mark.parametrize("empty_last_block", [False, True])
@pytest.mark.parametrize("checksum", [False, True])
def test_frames_without_content_size(length, empty_last_block, checksum):
    frame = streamed(CHUNK[:length], checksum=checksum, empty_last_block=empty_last_block)
    if empty_last_block:
        end = len(frame) - (4 if checksum else 0)
        assert frame[end - 3 : end] == b"\1\0\0"
    assert decompress_chunk(frame, length) == CHUNK[:length]


@pytest.mark.parametrize(
    "frame", [compress_chunk(CHUNK), streamed(CHUNK)], ids=["sized", "unsized"]
)
class TestRefusals:
    @pytest.mark.parametrize("difference", [-len(CHUNK), -1, 1, 10**6])
    def test_other_length(self, frame, difference):
        with pytest.raises(ImageFormatError):
            decompress_chunk(frame, len(CHUNK) + difference)

    @pytest.mark.parametrize("cut", [1, 3, 4, 5, 1000, 299_000])
    def test_cut_short(self, frame, cut):
        with pytest.raises(ImageFormatError):
            decompress_chunk(frame[:-cut], len(CHUNK))

    @pytest.mark.parametrize(
        "extra", [b"\0", SKIPPABLE, compress_chunk(b""), compress_chunk(b"more")]
    )
    def test_anything_behind_the_frame(self, frame, extra):
        with pytest.raises(ImageFormatError):
            decompress_chunk(frame + extra, len(CHUNK))

    @pytest.mark.parametrize("extra", [b"\0", SKIPPABLE, compress_chunk(b"")])
    def test_anything_before_the_frame(self, frame, extra):
        with pytest.raises(ImageFormatError):
            decompress_chunk(extra + frame, len(CHUNK))

    def test_wrong_checksum(self, frame):
        with pytest.raises(ImageFormatError, match=r"[Cc]hecksum"):
            decompress_chunk(frame[:-1] + bytes([frame[-1] ^ 1]), len(CHUNK))


@pytest.mark.parametrize("content_size", [None, 7, 2**60, 8000 << 17])
def test_a_bomb_gives_nothing_beyond_the_chunk(content_size):
    with pytest.raises(ImageFormatError):
        decompress_chunk(bomb(content_size), 4096)


def test_a_window_beyond_the_limit_is_refused():
    largest = bytes.fromhex("28b52ffd 00 88")  # window of 2 ** (10 + 17) bytes: at the limit
    block = (5 << 3 | 1).to_bytes(3, "little") + b"hello"
    assert decompress_chunk(largest + block, 5) == b"hello"
    for window in (0x89, 0x90, 0xF8):
        with pytest.raises(ImageFormatError):
            decompress_chunk(largest[:5] + bytes([window]) + block, 5)


def test_a_dictionary_is_refused():
    dictionary = zstandard.ZstdCompressionDict(
        CHUNK[:1000], dict_type=zstandard.DICT_TYPE_RAWCONTENT
    )
    frame = bytes.fromhex("28b52ffd 01 58 07") + (5 << 3 | 1).to_bytes(3, "little") + b"hello"
    assert zstandard.get_frame_parameters(frame).dict_id == 7
    assert dictionary.dict_id() == 0
    with pytest.raises(ImageFormatError):
        decompress_chunk(frame, 5)


def test_digest_is_of_the_compressed_frame():
    frame = compress_chunk(CHUNK)
    verify_frame(frame, hashlib.sha512(frame).digest())
    for at in (0, 5, len(frame) // 2, len(frame) - 1):
        flipped = bytearray(frame)
        flipped[at] ^= 4
        with pytest.raises(DigestMismatchError, match=f"chunk frame of {len(frame)} bytes"):
            verify_frame(bytes(flipped), hashlib.sha512(frame).digest())


@given(st.binary(max_size=200), st.booleans(), st.integers(1, 5000))
def test_any_bytes_decompress_or_are_refused(data, signed, length):
    try:
        out = decompress_chunk(b"\x28\xb5\x2f\xfd" + data if signed else data, length)
    except ImageFormatError:
        return
    assert len(out) == length


@given(st.integers(0, 10**6), st.integers(0, 255))
def test_changed_frames_decompress_or_are_refused(at, value):
    frame = bytearray(streamed(b"some text " * 900))
    frame[at % len(frame)] = value
    try:
        out = decompress_chunk(bytes(frame), 9000)
    except ImageFormatError:
        return
    assert len(out) == 9000

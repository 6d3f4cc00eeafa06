"""Layer streams: told by magic, bounded, complete or refused."""

import bz2
import gzip
import hashlib
import io
import lzma
import random
import zlib

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.convert import decoding
from lazyfs.convert.decoding import DecodedLayer
from lazyfs.errors import ConversionError, LazyfsError

CONTENT = random.Random(5).randbytes(70_000) * 3
SKIPPABLE = bytes.fromhex("5a2a4d18 03000000") + b"abc"


class Trickle:
    """Gives a few bytes at a time, as a network does."""

    def __init__(self, data: bytes, step: int) -> None:
        self._file = io.BytesIO(data)
        self._step = step

    def read(self, size: int, /) -> bytes:
        return self._file.read(min(size, self._step))


def decode(data: bytes, step: int = 1 << 20, ask: int = 5000) -> bytes:
    layer = DecodedLayer(Trickle(data, step))
    out = b""
    while piece := layer.read(ask):
        assert len(piece) <= ask
        out += piece
    assert layer.size_bytes == len(out)
    assert layer.sha256() == hashlib.sha256(out).hexdigest()
    return out


FORMS = {
    "plain": CONTENT,
    "gzip": gzip.compress(CONTENT),
    "gzip members": b"".join(
        gzip.compress(CONTENT[start : start + 30_000]) for start in range(0, len(CONTENT), 30_000)
    ),
    "gzip with empty member": gzip.compress(b"") + gzip.compress(CONTENT) + gzip.compress(b""),
    "gzip with padding": gzip.compress(CONTENT[:9])
    + bytes(7)
    + gzip.compress(CONTENT[9:])
    + bytes(999),
    "zstd": zstandard.compress(CONTENT),
    "zstd frames": zstandard.compress(CONTENT[:10]) + SKIPPABLE + zstandard.compress(CONTENT[10:]),
    "zstd after skippable": SKIPPABLE + zstandard.compress(CONTENT) + SKIPPABLE,
}


@pytest.mark.parametrize("step", [13, 1 << 20])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_decodes(form, step):
    assert decode(FORMS[form], step) == CONTENT


def test_short_and_empty_streams_are_plain():
    for data in (b"", b"x", b"\x1f", b"\x28\xb5\x2f"):
        assert decode(data) == data


def test_what_need_not_be_compressed_is_not_told_by_its_first_bytes():
    layer = DecodedLayer(io.BytesIO(FORMS["gzip"]), compressed=False)
    assert layer.read(1 << 20) + layer.read(1 << 20) == FORMS["gzip"]


@pytest.mark.parametrize(("pack", "name"), [(bz2.compress, "bzip2"), (lzma.compress, "xz")])
def test_unsupported_compressions_are_named(pack, name):
    with pytest.raises(ConversionError, match=f"compressed with {name}"):
        decode(pack(CONTENT))


@pytest.mark.parametrize("cut", [1, 4, 8, 9, 5000, 200_000])
def test_truncated_gzip(cut):
    with pytest.raises(ConversionError, match="ends early"):
        decode(FORMS["gzip"][:-cut])


@pytest.mark.parametrize("extra", [b"x", b"\0\0x", b"\x1f", b"\x1f\x8bxx"])
def test_garbage_behind_gzip(extra):
    with pytest.raises(ConversionError, match="gzip stream"):
        decode(FORMS["gzip"] + extra)


def test_broken_streams():
    broken = bytearray(FORMS["gzip"])
    broken[len(broken) // 2] ^= 1
    with pytest.raises(ConversionError, match="broken gzip stream"):
        decode(bytes(broken))
    with pytest.raises(ConversionError, match="broken zstd stream"):
        decode(FORMS["zstd"] + b"no frame")


@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_a_bomb_ends_at_the_limit(monkeypatch, form):
    monkeypatch.setattr(decoding, "MAX_DECODED_BYTES", 1 << 20)
    bomb = (gzip.compress if form == "gzip" else zstandard.compress)(bytes(50 << 20))
    with pytest.raises(ConversionError, match="more than 1048576 bytes"):
        decode(bomb, ask=1 << 16)


def test_a_large_window_is_refused():
    frame = bytes.fromhex("28b52ffd 00 90") + (5 << 3 | 1).to_bytes(3, "little") + b"hello"
    with pytest.raises(ConversionError, match="broken zstd stream"):
        decode(frame)


@given(st.sampled_from([b"", b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd"]), st.binary(max_size=300))
def test_any_bytes_decode_or_are_refused(magic, data):
    try:
        decode(magic + data)
    except LazyfsError:
        return


@given(st.binary(max_size=300), st.integers(1, 50))
def test_raw_deflate_inside_gzip_round_trip(data, step):
    packer = zlib.compressobj(wbits=31)
    assert decode(packer.compress(data) + packer.flush(), step) == data

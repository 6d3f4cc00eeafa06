"""The messages of FUSE that we write ourselves, against the layout in linux/fuse.h."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import MountError
from lazyfs.fuse.protocol import (
    Feature,
    Opcode,
    decode_init,
    encode_init_reply,
    encode_resend,
)

KERNEL_6_18 = 0x73FF_FFFB
"""The lower flags that this kernel offers, with INIT_EXT."""


def init(flags: int, flags2: int | None, *, major: int = 7, opcode: int = Opcode.INIT) -> bytes:
    body = struct.pack("=IIII", major, 45, 131072, flags)
    if flags2 is not None:
        body += struct.pack("=I44x", flags2)
    return struct.pack("=IIQQIIIHH", 40 + len(body), opcode, 2, 0, 0, 0, 0, 0, 0) + body


def test_an_offer_of_a_new_kernel():
    offer = decode_init(init(KERNEL_6_18, 1 << 7))
    assert (offer.unique, offer.major, offer.minor, offer.max_readahead) == (2, 7, 45, 131072)
    assert Feature.HAS_RESEND in offer.features
    assert Feature.HAS_RESEND not in offer.agreed
    assert Feature.INIT_EXT not in offer.agreed
    assert Feature.CACHE_SYMLINKS in offer.agreed


@pytest.mark.parametrize(
    ("flags", "flags2"), [(KERNEL_6_18, None), (KERNEL_6_18 & ~(1 << 30), 128)]
)
def test_upper_flags_count_only_where_they_are_said_to_be(flags, flags2):
    assert Feature.HAS_RESEND not in decode_init(init(flags, flags2)).features


def test_nothing_is_asked_for_that_was_not_offered():
    reply = encode_init_reply(decode_init(init(Feature.DO_READDIRPLUS | Feature.ASYNC_READ, None)))
    length, error, unique, major, minor, readahead, flags = struct.unpack_from("=IiQIIII", reply)
    assert (length, error, unique) == (len(reply), 0, 2)
    assert (major, minor, readahead) == (7, 31, 131072)
    assert flags == (1 << 13 | 1 << 0)
    assert len(reply) == 16 + 64


def test_the_limits_are_where_the_kernel_looks_for_them():
    reply = encode_init_reply(decode_init(init(KERNEL_6_18, 1 << 7)))
    background, congestion, max_write, granularity, pages = struct.unpack_from("=HHIIH", reply, 32)
    assert (background, congestion, max_write, granularity, pages) == (512, 512, 4096, 1, 256)


def test_a_request_to_send_again():
    assert encode_resend() == struct.pack("=IiQ", 16, 7, 0)


@pytest.mark.parametrize(
    "request_",
    [b"", b"x" * 55, init(0, None, major=8), init(0, None, opcode=1)],
)
def test_what_is_no_offer_is_refused(request_):
    with pytest.raises(MountError):
        decode_init(request_)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_offer_or_refused(data):
    try:
        offer = decode_init(data)
    except MountError:
        return
    assert len(encode_init_reply(offer)) == 80

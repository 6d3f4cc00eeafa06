"""Requests and answers of FUSE, against the layout in linux/fuse.h."""

import os
import stat
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import FuseRequestError, ImageFormatError
from lazyfs.fuse import replies, requests
from lazyfs.model import Attributes, NodeId

HEADER = bytes(40)
NODE = NodeId(0x1234_5678_9ABC)
FILE = Attributes(
    mode=stat.S_IFREG | 0o640,
    uid=7,
    gid=8,
    nlink=3,
    size_bytes=5000,
    mtime_s=-2,
    mtime_ns=999,
    rdev_major=0,
    rdev_minor=0,
    blocks_512=10,
)


def attr(data: bytes, offset: int) -> tuple[int, ...]:
    return struct.unpack_from("=QQQqqqIIIIIIIIII", data, offset)


WANTED = (NODE, 5000, 10, -2, -2, -2, 999, 999, 999, FILE.mode, 3, 7, 8, 0, 4096, 0)


def test_an_entry_is_valid_for_ever():
    entry = replies.encode_entry(NODE, FILE)
    assert len(entry) == 128
    node, generation, *valid = struct.unpack_from("=QQQQII", entry)
    assert (node, generation, valid) == (NODE, 0, [2**32 - 1, 2**32 - 1, 0, 0])
    assert attr(entry, 40) == WANTED


def test_attributes_are_valid_for_ever():
    answer = replies.encode_attributes(NODE, FILE)
    assert len(answer) == 104
    assert struct.unpack_from("=QII", answer) == (2**32 - 1, 0, 0)
    assert attr(answer, 16) == WANTED


def test_that_a_name_is_absent_is_remembered():
    node, _, entry_valid, attr_valid = struct.unpack_from("=QQQQ", replies.ABSENT_ENTRY)
    assert (node, entry_valid, attr_valid) == (0, 2**32 - 1, 0)
    assert len(replies.ABSENT_ENTRY) == len(replies.NO_ENTRY) == 128


@pytest.mark.parametrize(
    "numbers", [(0, 0), (1, 3), (8, 255), (8, 256), (259, 1 << 19), (4095, (1 << 20) - 1)]
)
def test_device_numbers(numbers):
    # glibc has the same layout in the lower 32 bits of a dev_t.
    assert replies.encode_device(*numbers) == os.makedev(*numbers)


@pytest.mark.parametrize(
    "changes", [{"size_bytes": 1 << 64}, {"uid": 1 << 32}, {"mode": -1}, {"blocks_512": -1}]
)
def test_values_that_do_not_fit_are_the_images_fault(changes):
    values = {name: getattr(FILE, name) for name in Attributes._fields} | changes
    for encode in (replies.encode_entry, replies.encode_attributes):
        with pytest.raises(ImageFormatError):
            encode(NODE, Attributes(**values))


def test_statfs():
    answer = replies.encode_statfs(4097)
    assert len(answer) == 80
    assert struct.unpack_from("=QQQQQIII", answer) == (2, 0, 0, 0, 0, 4096, 255, 4096)


NAMES = st.binary(min_size=1, max_size=255).filter(lambda name: b"/" not in name)


@given(st.lists(NAMES, max_size=20), st.integers(0, 4096), st.booleans())
def test_a_listing_is_what_the_kernel_reads(names, size, plus):
    listing = replies.Listing(size, plus=plus)
    entry = replies.encode_entry(NODE, FILE)
    added = [
        (name, number)
        for number, name in enumerate(names, 1)
        if listing.add(name, number, stat.S_IFDIR, number + 5, entry)
    ]
    assert len(listing.buffer) <= size
    found, offset = [], 0
    data = bytes(listing.buffer)
    while offset < len(data):
        if plus:
            assert data[offset : offset + 128] == entry
            offset += 128
        inode, position, length, kind = struct.unpack_from("=QQII", data, offset)
        assert (position, kind) == (inode + 5, 4)  # DT_DIR
        found.append((data[offset + 24 : offset + 24 + length], inode))
        offset += (24 + length + 7) // 8 * 8
    assert found == added


def test_what_is_to_be_read():
    body = struct.pack("=QQIIQII", 9, 1 << 40, 65536, 1, 2, 3, 0)
    assert requests.decode_read(HEADER + body) == (1 << 40, 65536)


def test_names():
    assert requests.decode_name(HEADER + b"name\0") == b"name"
    body = struct.pack("=II", 64, 0)
    assert requests.decode_getxattr(HEADER + body + b"user.x\0") == (64, b"user.x")
    assert requests.decode_listxattr(HEADER + body) == (64, b"")
    assert requests.decode_interrupt(HEADER + struct.pack("=Q", 1 << 63)) == 1 << 63


@pytest.mark.parametrize("body", [b"", b"\0", b"no end", b"two\0names\0"])
def test_what_is_no_name_is_refused(body):
    with pytest.raises(FuseRequestError):
        requests.decode_name(HEADER + body)


@given(st.binary(max_size=120))
def test_any_bytes_are_decoded_or_refused(data):
    for decode in (
        requests.decode_name,
        requests.decode_read,
        requests.decode_getxattr,
        requests.decode_listxattr,
        requests.decode_interrupt,
    ):
        try:
            decode(data)
        except FuseRequestError:
            continue

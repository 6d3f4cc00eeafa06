"""The parts of the EROFS writer: names, space, directory blocks, xattrs, chunk maps."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.erofs import ondisk
from lazyfs.erofs.build.dirents import Dirent, directory_size, encode_directory
from lazyfs.erofs.build.paths import shown, split_path
from lazyfs.erofs.build.space import MetadataSpace, round_up
from lazyfs.erofs.build.sparse import check_segments, fill_extents, plan_chunks
from lazyfs.erofs.build.xattrs import (
    ORIGIN,
    Xattr,
    body_icount,
    body_size,
    encode_body,
    encode_entry,
    entry_size,
    shared_ids,
    with_xattr,
    worth_sharing,
    xattr_set,
)
from lazyfs.errors import ConversionError
from lazyfs.model import ByteRange

BLOCK = 4096


@pytest.mark.parametrize(
    ("path", "components"),
    [
        (b"", []),
        (b".", []),
        (b"./", []),
        (b"/", []),
        (b"a", [b"a"]),
        (b"/a//./b/", [b"a", b"b"]),
        (b"./..a/...", [b"..a", b"..."]),
        (b"n" * 255, [b"n" * 255]),
    ],
)
def test_paths_are_confined(path, components):
    assert split_path(path) == components


@pytest.mark.parametrize(
    "path", [b"..", b"a/../b", b"/..", b"a\0b", b"n" * 256, b"a/" + b"n" * 256, b"a/" * 2048]
)
def test_paths_that_cannot_be(path):
    with pytest.raises(ConversionError):
        split_path(path)


def test_a_path_is_shown_on_one_line():
    assert shown(b"a\nb\xff") == r"'a\nb\\xff'"


@given(
    st.integers(0, 3 * BLOCK),
    st.lists(
        st.tuples(st.sampled_from(["any", "within", "blocks"]), st.integers(1, BLOCK)), max_size=60
    ),
)
def test_space_is_handed_out_once(start, wishes):
    space = MetadataSpace(start, BLOCK)
    taken: list[tuple[int, int]] = [(0, start)]
    for kind, length in wishes:
        if kind == "blocks":
            count = length % 5
            position = space.blocks(count) * BLOCK
            length = count * BLOCK
        else:
            position = space.slot(length, within_block=kind == "within")
            assert position % 32 == 0
            if kind == "within":
                assert position // BLOCK == (position + length - 1) // BLOCK
        if length:
            taken.append((position, position + length))
    taken.sort()
    assert all(left[1] <= right[0] for left, right in pairwise(taken))
    assert space.end % BLOCK == 0
    assert taken[-1][1] <= space.end


def test_inodes_go_on_in_the_block_before_a_directory():
    space = MetadataSpace(1152, BLOCK)
    assert space.slot(64) == 1152
    assert space.blocks(2) == 1
    assert space.slot(64) == 1216
    assert space.slot(BLOCK - 32, within_block=True) == 3 * BLOCK
    assert space.end == 4 * BLOCK


@given(st.sets(st.binary(min_size=1, max_size=255), min_size=1, max_size=200))
def test_directory_blocks_hold_all_names_in_order(names):
    wanted = [Dirent(name, 40 + i, 1 + i % 7) for i, name in enumerate(sorted(names))]
    data = encode_directory(wanted, BLOCK)
    assert len(data) == directory_size([dirent.name for dirent in wanted], BLOCK)
    found: list[Dirent] = []
    for start in range(0, len(data), BLOCK):
        block = data[start : start + BLOCK]
        count = ondisk.DIRENT.decode(block).nameoff // 12
        records = [ondisk.DIRENT.decode(block, 12 * i) for i in range(count)]
        ends = [record.nameoff for record in records[1:]] + [len(block)]
        for record, end in zip(records, ends, strict=True):
            name = block[record.nameoff : end]
            found.append(Dirent(name, record.nid, record.file_type))
        if start + BLOCK < len(data):  # the padding of a full block is NULs behind the last name
            padding = len(found[-1].name) - len(wanted[len(found) - 1].name)
            assert found[-1].name.endswith(b"\0" * padding)
            found[-1] = found[-1]._replace(name=wanted[len(found) - 1].name)
    assert found == wanted


def test_xattr_names_become_indexes():
    xattrs, dropped = xattr_set(
        {
            b"user.u": b"1",
            b"trusted.overlay.opaque": b"y",
            b"security.capability": b"\0",
            b"lustre.l": b"",
            b"system.posix_acl_access": b"a",
            b"system.posix_acl_default": b"d",
            b"com.apple.quarantine": b"dropped",
            b"system.nfs4_acl": b"dropped",
            b"user.": b"dropped",
        }
    )
    assert dropped == 3
    assert xattrs == (
        Xattr(1, b"u", b"1"),
        Xattr(2, b"", b"a"),
        Xattr(3, b"", b"d"),
        Xattr(4, b"overlay.opaque", b"y"),
        Xattr(5, b"l", b""),
        Xattr(6, b"capability", b"\0"),
    )


@pytest.mark.parametrize("xattr", [(b"user." + b"n" * 256, b""), (b"user.n", bytes(65536))])
def test_xattrs_too_long(xattr):
    with pytest.raises(ConversionError, match="at most"):
        xattr_set(dict([xattr]))
    longest = {b"user." + b"n" * 255: b"", b"user.v": bytes(65535)}
    assert xattr_set(longest)[1] == 0


def test_too_many_xattrs_for_one_inode():
    xattrs = tuple(Xattr(1, b"%d" % n, bytes(60_000)) for n in range(5))
    with pytest.raises(ConversionError, match="too many"):
        body_size(xattrs, {})
    assert body_icount(body_size(xattrs[:4], {})) < 65536


def test_sharing_needs_to_save_bytes():
    long, short = Xattr(1, b"long", b"v" * 20), Xattr(1, b"", b"")
    assert entry_size(short) == 4
    assert worth_sharing({long: 1, short: 1000}) == []
    assert worth_sharing({long: 2, short: 1000}) == [long]


def test_the_xattr_body_has_ids_and_then_entries():
    shared, own = Xattr(1, b"s", b"v" * 9), Xattr(6, b"own", b"12")
    ids = shared_ids([own, shared], 1216)
    assert ids == {own: 304, shared: 307}
    body = encode_body((shared, own), {shared: 307})
    assert len(body) == body_size((shared, own), {shared})
    header = ondisk.XATTR_IBODY_HEADER.decode(body)
    assert header == (0, 1, bytes(7))
    assert body[12:16] == (307).to_bytes(4, "little")
    assert body[16:] == encode_entry(own) == b"\x03\x06\x02\x00own12" + bytes(3)
    assert body_icount(len(body)) == 1 + (len(body) - 12) // 4
    assert encode_body((), {}) == b""
    assert body_icount(0) == 0


def test_no_more_shared_ids_than_the_header_can_count():
    xattrs = tuple(sorted(Xattr(1, b"%03d" % n, b"value") for n in range(300)))
    body = encode_body(xattrs, dict.fromkeys(xattrs, 7))
    assert ondisk.XATTR_IBODY_HEADER.decode(body).h_shared_count == 255
    assert len(body) == body_size(xattrs, set(xattrs)) == 12 + 255 * 4 + 45 * 12


def test_an_xattr_of_the_tar_is_not_replaced():
    own = (Xattr(ORIGIN.name_index, ORIGIN.name, b"own"),)
    assert with_xattr(own, ORIGIN) == own
    assert with_xattr((), ORIGIN) == (ORIGIN,)


@st.composite
def sparse_files(draw):
    lengths = draw(st.lists(st.tuples(st.integers(0, 30_000), st.integers(0, 30_000)), max_size=12))
    position = 0
    segments = []
    for gap, length in lengths:
        segments.append(ByteRange(position + gap, length))
        position += gap + length
    return position + draw(st.integers(0, 1 << 20)), segments


@given(sparse_files(), st.integers(1, 9000))
def test_a_planned_file_reads_as_it_was(sparse, piece_size):
    size, segments = sparse
    check_segments(segments, size)
    content = bytearray(round_up(size, BLOCK))
    for n, (offset, length) in enumerate(segments):
        content[offset : offset + length] = bytes([n + 1]) * length
    data = b"".join(content[s.offset : s.end] for s in segments)
    pieces = [data[at : at + piece_size] for at in range(0, len(data), piece_size)]
    plan = plan_chunks(size, segments, BLOCK)
    if plan is None:
        extents = [ByteRange(0, len(content))]
        assert b"".join(fill_extents(extents, segments, pieces)) == content
        return
    extents = list(plan.extents(size, BLOCK))
    stored = b"".join(fill_extents(extents, segments, pieces))
    assert len(stored) == sum(extent.length for extent in extents)
    blocks = plan.encode(0, lambda block: 10 + block)
    assert len(blocks) == plan.map_size
    chunk = BLOCK << plan.block_bits
    found = bytearray()
    for at in range(0, len(blocks), 4):
        block = int.from_bytes(blocks[at : at + 4], "little")
        length = min(chunk, len(content) - len(found))
        if block == 0xFFFFFFFF:
            found += bytes(length)
        else:
            assert (block - 10) * BLOCK + length <= len(stored)
            found += stored[(block - 10) * BLOCK :][:length]
    assert found == content
    assert len(stored) + len(blocks) <= len(content) + 4 * len(content) // BLOCK


def test_a_large_hole_has_a_short_map():
    plan = plan_chunks(1 << 50, [ByteRange(0, 10), ByteRange((1 << 50) - 1, 1)], BLOCK)
    assert plan is not None
    stored = sum(extent.length for extent in plan.extents(1 << 50, BLOCK))
    assert stored + plan.map_size < 200 << 20


def test_files_without_holes_are_flat():
    assert plan_chunks(0, [], BLOCK) is None
    assert plan_chunks(10, [ByteRange(0, 10)], BLOCK) is None
    assert plan_chunks(9000, [ByteRange(100, 100), ByteRange(8200, 800)], BLOCK) is not None
    assert plan_chunks(9000, [ByteRange(1, 8999)], BLOCK) is None


@pytest.mark.parametrize(
    "segments",
    [
        [ByteRange(0, 101)],
        [ByteRange(-1, 1)],
        [ByteRange(50, -1)],
        [ByteRange(50, 10), ByteRange(59, 1)],
        [ByteRange(50, 10), ByteRange(0, 1)],
    ],
)
def test_segments_out_of_place(segments):
    with pytest.raises(ConversionError):
        check_segments(segments, 100)

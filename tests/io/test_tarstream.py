"""Tar streams as entries: every dialect, and everything that can be wrong."""

import io
import random
import subprocess
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.convert import tarstream
from lazyfs.convert.tarheader import (
    decode_header,
    decode_number,
    decode_pax_records,
    decode_time_ns,
)
from lazyfs.convert.tarstream import EntryKind, TarEntry, TarReader
from lazyfs.errors import ConversionError
from lazyfs.model import ByteRange
from tests.support import tar_samples as tars


class Trickle:
    """A stream that gives pieces of other sizes than asked for."""

    def __init__(self, data: bytes, sizes: int = 700) -> None:
        self._file = io.BytesIO(data)
        self._random = random.Random(sizes)
        self._sizes = sizes

    def read(self, size: int, /) -> bytes:
        return self._file.read(min(size, self._random.randint(1, self._sizes)))


def read_all(stream) -> list[tuple[TarEntry, bytes]]:
    if isinstance(stream, bytes):
        stream = io.BytesIO(stream)
    reader = TarReader(stream)
    return [(entry, b"".join(reader.data())) for entry in reader.entries()]


def only(*members: bytes) -> TarEntry:
    [(entry, _)] = read_all(tars.tar(*members))
    return entry


def test_an_empty_archive():
    assert read_all(b"") == []
    assert read_all(tars.END) == []
    assert read_all(bytes(10240)) == []
    assert read_all(tars.pax({b"comment": b"c"}, kind=b"g")) == []


def test_an_archive_without_an_end_marker():
    entries = read_all(tars.file(b"a", b"1") + tars.file(b"b", b"22"))
    assert [(entry.path, data) for entry, data in entries] == [(b"a", b"1"), (b"b", b"22")]


def test_data_that_nobody_reads_is_skipped():
    stream = tars.tar(tars.file(b"a", b"1" * 3_000_000), tars.file(b"b", b"2" * 1000))
    reader = TarReader(Trickle(stream, 90_000))
    paths = []
    for entry in reader.entries():
        paths.append(entry.path)
        assert next(reader.data())[:1] in b"12"
    assert paths == [b"a", b"b"]


def test_pieces_are_bounded():
    reader = TarReader(io.BytesIO(tars.file(b"a", bytes(5 << 20))))
    for _ in reader.entries():
        assert {len(piece) for piece in reader.data()} == {tarstream.PIECE}


def test_progress_counts_all_bytes():
    stream = tars.tar(tars.file(b"a", bytes(3 << 20)))
    told: list[int] = []
    for _ in TarReader(io.BytesIO(stream), told.append).entries():
        pass
    assert told == sorted(told)
    assert told[-1] == len(stream)


@given(st.integers(1, 5000))
@settings(max_examples=20)
def test_pieces_of_the_stream_do_not_matter(sizes):
    stream = tars.odd_layer()
    assert read_all(Trickle(stream, sizes)) == read_all(stream)


def test_the_standard_library_reads_the_same():
    stream = tars.odd_layer()
    ours = {entry.path.rstrip(b"/"): (entry, data) for entry, data in read_all(stream)}
    with tarfile.open(fileobj=io.BytesIO(stream)) as archive:
        theirs = {member.name.encode("utf-8", "surrogateescape"): member for member in archive}
        assert set(ours) == set(theirs)
        for path, (entry, data) in ours.items():
            member = theirs[path]
            assert entry.mode == member.mode
            assert (entry.uid, entry.gid) == (member.uid, member.gid)
            assert entry.mtime_ns // 10**9 == member.mtime // 1
            assert entry.link_target == member.linkname.encode()
            assert (entry.kind is EntryKind.DIRECTORY) == member.isdir()
            if member.isdev() and not member.isfifo():
                assert (entry.major, entry.minor) == (member.devmajor, member.devminor)
            if entry.kind is EntryKind.FILE:
                assert entry.size_bytes == member.size
                content = bytearray(entry.size_bytes)
                for offset, length in entry.segments:
                    content[offset : offset + length], data = data[:length], data[length:]
                file = archive.extractfile(member)
                assert file is not None
                assert content == file.read()


NAMES = st.text(min_size=1, max_size=300).filter(lambda name: "\0" not in name.strip("/") != "")


@given(
    st.lists(
        st.tuples(
            NAMES,
            st.binary(max_size=1500),
            st.integers(0, 0o7777),
            st.integers(0, (1 << 32) - 1),
            st.integers(-(1 << 33), 1 << 35),
        ),
        max_size=4,
    ),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_archives_by_the_standard_library(members, tar_format):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format, errors="surrogatepass") as archive:
        for name, data, mode, owner, mtime in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uid, info.mtime = len(data), mode, owner, mtime
            archive.addfile(info, io.BytesIO(data))
    found = read_all(out.getvalue())
    assert len(found) == len(members)
    for (entry, content), (name, data, mode, owner, mtime) in zip(found, members, strict=True):
        path = str(tarfile.TarInfo(name).get_info()["name"]).encode("utf-8", "surrogatepass")
        assert entry.path.rstrip(b"/") == path.rstrip(b"/")
        assert content == data
        assert (entry.mode, entry.uid, entry.mtime_ns) == (mode, owner, mtime * 10**9)


def test_names_from_every_extension():
    assert only(tars.file(b"n", prefix=b"p" * 155)).path == b"p" * 155 + b"/n"
    assert only(tars.gnu_long(b"long") + tars.file(b"n")).path == b"long"
    assert only(tars.pax({b"path": b"pax"}) + tars.gnu_long(b"l") + tars.file(b"n")).path == b"pax"
    assert only(tars.pax({b"path": b""}) + tars.file(b"n")).path == b"n"
    assert only(tars.file(b"n", magic=b"ustar  \0", tail=b"12345678901\0")).path == b"n"
    assert only(tars.file(b"n" * 100)).path == b"n" * 100
    star = tars.file(b"n", tail=b"p".ljust(131, b"\0") + b"1" * 24 + bytes(8) + b"tar\0")
    assert only(star).path == b"p/n"
    both = tars.gnu_long(b"k" * 200, b"K") + tars.gnu_long(b"l" * 200)
    entry = only(both + tars.symlink(b"n", b"t"))
    assert (entry.path, entry.link_target) == (b"l" * 200, b"k" * 200)
    linked = only(tars.pax({b"linkpath": b"\xff\xfe"}) + tars.hard_link(b"n", b"t"))
    assert linked.link_target == b"\xff\xfe"


def test_global_records_are_passed_over_as_containerd_does():
    stream = tars.tar(
        tars.pax({b"uid": b"7", b"mtime": b"1.5", b"SCHILY.xattr.user.x": b"x"}, kind=b"g"),
        tars.file(b"a", uid=1),
        tars.pax({b"uid": b"8"}) + tars.pax({b"uid": b"9"}, kind=b"g") + tars.file(b"b", uid=1),
        tars.pax({b"path": b"z"}, kind=b"g"),
        tars.file(b"c", uid=1),
    )
    entries = [entry for entry, _ in read_all(stream)]
    assert [(entry.path, entry.uid) for entry in entries] == [(b"a", 1), (b"b", 8), (b"c", 1)]
    assert {entry.mtime_ns for entry in entries} == {0}
    assert not any(entry.xattrs for entry in entries)


def test_a_pax_size_rules():
    stream = tars.tar(
        tars.pax({b"size": b"5"}) + tars.header(b"a") + tars.padded(b"hello"), tars.file(b"b")
    )
    assert [(entry.path, data) for entry, data in read_all(stream)] == [
        (b"a", b"hello"),
        (b"b", b""),
    ]


def test_sizes_of_entries_without_data_mean_nothing():
    stream = tars.tar(
        *(tars.header(b"n", kind=kind, size=1000, link=b"t") for kind in (b"1", b"2", b"5", b"6")),
        tars.file(b"last", b"data"),
    )
    entries = read_all(stream)
    assert [entry.size_bytes for entry, _ in entries] == [0, 0, 0, 0, 4]


def test_gnu_types_beside_files():
    stream = tars.tar(
        tars.header(b"label", kind=b"V"),
        tars.header(b"dump/", kind=b"D", size=600) + bytes(1024),
        tars.file(b"c", b"1", kind=b"7"),
    )
    assert [(entry.kind, entry.path) for entry, _ in read_all(stream)] == [
        (EntryKind.DIRECTORY, b"dump/"),
        (EntryKind.FILE, b"c"),
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"0", 0),
        (b"1700000000", 1700000000 * 10**9),
        (b"1.5", 1_500_000_000),
        (b"1.", 10**9),
        (b"1.123456789", 1_123_456_789),
        (b"1.1234567899999", 1_123_456_789),
        (b"-1.5", -1_500_000_000),
        (b"-0.000000001", -1),
        (b"-0.0000000001", -1),
        (b"-1.0000000000", -(10**9)),
    ],
)
def test_times_are_exact_and_rounded_down(text, value):
    assert decode_time_ns(text) == value


@pytest.mark.parametrize("text", [b"", b"-", b".5", b"1e9", b"1.-5", b"9" * 50, b"+1", b"nan"])
def test_times_that_are_none(text):
    with pytest.raises(ConversionError):
        decode_time_ns(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"0000644\0", 0o644),
        (b"   644 \0", 0o644),
        (b"644\0junk", 0o644),
        (b"77777777", 0o77777777),
        (b"\0\0\0\0\0\0\0\0", 0),
        (b"        ", 0),
        (b"\x80\0\0\0\0\0\1\0", 256),
        (b"\xff\xff\xff\xff\xff\xff\xff\xfe", -2),
        (b"\x80\0\0\0\xff\xff\xff\xff", (1 << 32) - 1),
    ],
)
def test_numbers(field, value):
    assert decode_number(field, "field") == value


@pytest.mark.parametrize("field", [b"0000648\0", b"-0000644", b"0x644\0", b"6 4\0", b"1_0\0"])
def test_numbers_that_are_none(field):
    with pytest.raises(ConversionError):
        decode_number(field, "field")


def test_checksums():
    block = tars.header(b"caf\xe9")
    assert decode_header(block).name == b"caf\xe9"
    signed = sum(byte - 256 * (byte > 127) for byte in block) - sum(block[148:156]) + 8 * 32
    assert decode_header(block[:148] + b"%06o\0 " % signed + block[156:]).name == b"caf\xe9"
    with pytest.raises(ConversionError, match="checksum"):
        decode_header(b"d" + block[1:])


def test_xattrs_are_binary_safe():
    entry = only(
        tars.pax(
            {
                b"SCHILY.xattr.user.binary": b"\0=\n\xff",
                b"SCHILY.xattr.user.a%3Db%25": b"escaped",
                b"SCHILY.xattr.user.empty": b"",
                b"LIBARCHIVE.xattr.user.url%20name": b"AP8",
                b"LIBARCHIVE.xattr.user.binary": b"d3Jvbmc=",
                b"SCHILY.acl.access": b"user::rwx",
            }
        )
        + tars.file(b"f")
    )
    assert entry.xattrs == {
        b"user.binary": b"\0=\n\xff",
        b"user.a=b%": b"escaped",
        b"user.empty": b"",
        b"user.url name": b"\0\xff",
    }


def test_sparse_maps():
    one_zero = tars.sparse_1_0(b"s", 100_000, [(512 * n, b"%03d" % n) for n in range(100)])
    zero_zero = tars.pax(
        [
            (b"GNU.sparse.size", b"5000"),
            (b"GNU.sparse.numblocks", b"2"),
            (b"GNU.sparse.offset", b"1000"),
            (b"GNU.sparse.numbytes", b"4"),
            (b"GNU.sparse.offset", b"5000"),
            (b"GNU.sparse.numbytes", b"0"),
        ]
    ) + tars.file(b"z", b"data")
    zero_one = tars.pax(
        {
            b"GNU.sparse.size": b"6000",
            b"GNU.sparse.name": b"o",
            b"GNU.sparse.map": b"0,2,5000,2",
        }
    ) + tars.file(b"GNUSparseFile.1/o", b"data")
    entries = read_all(tars.tar(one_zero, zero_zero, zero_one))
    assert [(entry.path, entry.size_bytes) for entry, _ in entries] == [
        (b"s", 100_000),
        (b"z", 5000),
        (b"o", 6000),
    ]
    assert entries[0][0].segments == [ByteRange(512 * n, 3) for n in range(100)]
    assert entries[0][1] == b"".join(b"%03d" % n for n in range(100))
    assert entries[1][0].segments == [ByteRange(1000, 4), ByteRange(5000, 0)]
    assert entries[2][0].segments == [ByteRange(0, 2), ByteRange(5000, 2)]


def test_old_gnu_sparse_maps_of_many_parts(tmp_path):
    with (tmp_path / "s").open("wb") as file:
        for n in range(60):
            file.seek(n * 65536)
            file.write(b"%04d" % n * 1024)
    command = ["tar", "-cS", "--format=gnu", "-C", str(tmp_path), "s"]
    stream = subprocess.run(command, check=True, capture_output=True).stdout
    [(entry, data)] = read_all(stream)
    assert entry.size_bytes == 59 * 65536 + 4096
    assert len(data) == 60 * 4096
    content = bytearray(entry.size_bytes)
    for offset, length in entry.segments:
        content[offset : offset + length], data = data[:length], data[length:]
    assert content == (tmp_path / "s").read_bytes()


PAX_1_0 = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"9"}


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (tars.file(b"a", b"x" * 600)[:-1], "ends"),
        (tars.file(b"a", b"x" * 600)[:700], "ends"),
        (tars.file(b"a")[:511], "ends"),
        (tars.file(b"a") + b"junk" * 128, "checksum|number"),
        (b"PK\3\4" * 200, "checksum|number"),
        (tars.tar(tars.file(b"a")) + b"x", "behind the end"),
        (tars.file(b"a") + bytes(512) + tars.file(b"b"), "behind the end"),
        (tars.pax({b"path": b"p"}), "behind an extended header"),
        (tars.gnu_long(b"p") + tars.END, "behind an extended header"),
        (tars.pax({b"path": b"p"})[:-512], "ends"),
        (tars.header(b"x", kind=b"x", size=1 << 40), "at most"),
        (tars.header(b"x", kind=b"L", size=1 << 40), "at most"),
        (tars.header(b"x", kind=b"x", size=9) + tars.padded(b"9 a=b\nxyz"), "PAX record"),
        (tars.header(b"x", kind=b"x", size=6) + tars.padded(b"7 a=b\n"), "PAX record"),
        (tars.header(b"x", kind=b"x", size=6) + tars.padded(b"6 abc\n"), "PAX record"),
        (tars.header(b"x", kind=b"x", size=2) + tars.padded(b"0 "), "PAX record"),
        (tars.header(b"x", kind=b"x", size=3) + tars.padded(b"-1 "), "PAX record"),
        (tars.header(b"x", kind=b"g", size=1 << 40), "at most"),
        (tars.header(b"n", kind=b"M"), "type b'M'"),
        (tars.header(b"n", kind=b"Z"), "type b'Z'"),
        (tars.header(b"n", size=-5), "size -5"),
        (tars.pax({b"size": b"-5"}) + tars.header(b"n"), "size -5"),
        (tars.pax({b"uid": b"root"}) + tars.header(b"n"), "owner"),
        (tars.pax({b"mtime": b"today"}) + tars.header(b"n"), "time"),
        (tars.pax({b"LIBARCHIVE.xattr.user.a": b"*"}) + tars.header(b"n"), "base64"),
        (tars.pax(PAX_1_0) + tars.file(b"n", b"1\n0\n9\n"), "sparse map"),
        (tars.pax(PAX_1_0) + tars.file(b"n", tars.padded(b"x\n")), "sparse map"),
        (tars.pax(PAX_1_0) + tars.file(b"n", tars.padded(b"-1\n")), "sparse map"),
        (tars.pax(PAX_1_0) + tars.file(b"n", tars.padded(b"%d\n" % (1 << 60))), "sparse map"),
        (tars.pax(PAX_1_0) + tars.file(b"n", bytes(2048)), "sparse map"),
        (tars.pax(PAX_1_0) + tars.file(b"n", tars.padded(b"1\n0\n9\n") + b"123"), "sparse map"),
        (tars.pax({b"GNU.sparse.map": b"0,1,2"}) + tars.file(b"n"), "sparse map"),
        (tars.pax({b"GNU.sparse.numbytes": b"1"}) + tars.file(b"n"), "sparse map"),
        (tars.pax({b"GNU.sparse.map": b"0,0"}) + tars.file(b"n"), "sparse size"),
    ],
)
def test_damage_is_named(stream, why):
    with pytest.raises(ConversionError, match=why):
        read_all(stream)


@pytest.mark.parametrize("cut", range(0, 6000, 137))
def test_a_cut_archive_is_complete_or_an_error(cut):
    whole = tars.file(b"a", b"1" * 2000) + tars.pax({b"path": b"b"}) + tars.file(b"c", b"2" * 900)
    if cut < len(whole) and cut not in (0, 2560):
        with pytest.raises(ConversionError):
            read_all(whole[:cut])
    else:
        assert len(read_all(whole[:cut])) in (0, 1, 2)


@settings(max_examples=200)
@given(st.data())
def test_damaged_archives_give_conversion_errors_only(data):
    stream = bytearray(tars.odd_layer()[:60_000])
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(stream) - 1))
        stream[at] = data.draw(st.integers(0, 255))
    try:
        read_all(bytes(stream))
    except ConversionError:
        return


@given(st.binary(min_size=512, max_size=512), st.binary(max_size=2000))
def test_any_header_with_a_good_checksum(block, rest):
    checked = block[:148] + b" " * 8 + block[156:]
    header = block[:148] + b"%06o\0 " % sum(checked) + block[156:]
    with pytest.raises(ConversionError):  # the block behind is no header
        read_all(header + rest + b"\xff" * 512)


@given(st.binary(max_size=200))
def test_any_pax_body(body):
    try:
        records = decode_pax_records(body)
    except ConversionError:
        return
    assert sum(len(key) + len(value) for key, value in records) <= len(body)

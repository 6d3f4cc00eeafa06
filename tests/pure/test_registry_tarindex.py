import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.errors import ContentError, RegistryError
from registry.tarindex import Member, find, scan


def index(data: bytes) -> dict[str, Member]:
    steps = scan(len(data))
    try:
        wanted = next(steps)
        while True:
            wanted = steps.send(data[wanted.offset : wanted.offset + wanted.length])
    except StopIteration as stop:
        members: dict[str, Member] = stop.value
        return members


def tar(members: list[tuple[str, bytes, str, str]], form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content, kind, target in members:
            member = tarfile.TarInfo(name)
            member.type = kind.encode()
            member.linkname = target
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


LONG = "d" * 90 + "/" + "f" * 150
FORMS = pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


@FORMS
def test_members_as_the_standard_library_writes_them(form):
    data = tar(
        [
            ("./a", b"x" * 700, "0", ""),
            ("dir", b"", "5", ""),
            (LONG, b"long", "0", ""),
            ("dir/ümlaut", b"", "0", ""),
            ("dir/sym", b"", "2", "../" + LONG),
            ("hard", b"", "1", "a"),
            ("last", b"end", "0", ""),
        ],
        form,
    )
    members = index(data)

    def content(name: str) -> bytes:
        member = find(members, name)
        assert member is not None
        return data[member.offset : member.offset + member.size_bytes]

    assert content("a") == b"x" * 700
    assert content("hard") == b"x" * 700
    assert content(LONG) == b"long"
    assert content("dir/sym") == b"long"
    assert content("./dir/../last") == b"end"
    assert content("dir/ümlaut") == b""
    assert find(members, "dir") is None
    assert find(members, "missing") is None


def test_of_equal_names_the_last_counts():
    data = tar([("a", b"1", "0", ""), ("a", b"22", "0", "")], tarfile.USTAR_FORMAT)
    assert index(data)["a"].size_bytes == 2


def test_prefix_of_ustar():
    name = "p" * 100 + "/" + "n" * 60
    assert list(index(tar([(name, b"", "0", "")], tarfile.USTAR_FORMAT))) == [name]


def test_large_sizes_and_their_limit():
    member = tarfile.TarInfo("big")
    member.size = 9 << 30
    header = member.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(ContentError, match="passes the end"):
        index(header + bytes(1024))
    steps = scan((9 << 30) + 1024)
    next(steps)
    assert steps.send(header).offset == (9 << 30) + 512


def test_links_that_never_end():
    data = tar([("a", b"", "2", "b"), ("b", b"", "2", "a")], tarfile.USTAR_FORMAT)
    with pytest.raises(ContentError, match="too many links"):
        find(index(data), "a")


def test_links_do_not_leave_the_archive():
    data = tar([("a", b"", "2", "../../etc/passwd")], tarfile.USTAR_FORMAT)
    assert find(index(data), "a") is None


@pytest.mark.parametrize("cut", [0, 1, 511, 513, 1000])
def test_cut_archives(cut):
    data = tar([("a", b"x" * 600, "0", "")], tarfile.USTAR_FORMAT)
    with pytest.raises(ContentError, match="cut"):
        index(data[:cut])


def test_without_closing_blocks():
    data = tar([("a", b"x" * 512, "0", "")], tarfile.USTAR_FORMAT)
    assert list(index(data[:1024])) == ["a"]


def test_extensions_are_limited():
    data = tar([("n" * (70 << 10), b"", "0", "")], tarfile.GNU_FORMAT)
    with pytest.raises(ContentError, match="extension"):
        index(data)


@given(st.binary(max_size=2000))
def test_bytes_are_refused(data):
    with pytest.raises(RegistryError):
        index(b"x" + data)


@settings(max_examples=200)
@given(st.data())
def test_changed_archives_only_raise_own_errors(data):
    whole = bytearray(tar([(LONG, b"abc", "0", ""), ("b", b"", "2", LONG)], tarfile.PAX_FORMAT))
    header = data.draw(st.integers(0, len(whole) // 512 - 1)) * 512
    for _ in range(data.draw(st.integers(1, 4))):
        position = header + data.draw(st.integers(0, 511))
        whole[position] = data.draw(st.integers(0, 255))
    checksum = sum(whole[header : header + 512]) - sum(whole[header + 148 : header + 156]) + 256
    whole[header + 148 : header + 156] = b"%06o\0 " % checksum
    try:
        members = index(bytes(whole))
        for member in members.values():
            assert 0 <= member.offset <= member.offset + member.size_bytes <= len(whole)
    except RegistryError:
        pass

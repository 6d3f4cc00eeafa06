"""Several ranges by one answer: what servers send is taken apart, anything else is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.byteranges import MAX_HEAD_BYTES, Parts
from registry.errors import ContentError, OneRangeError, RegistryError, TransportError
from tests.support.fake_registry import multipart

DATA = bytes(range(256)) * 8
RANGES = [(100, 50), (7, 1), (1000, 300), (150, 20)]
HEADERS = {"content-type": "multipart/byteranges; boundary=b0undary"}


def body(ranges=RANGES, data: bytes = DATA) -> bytes:
    return multipart(data, [(offset, offset + length - 1) for offset, length in ranges]).body


def taken(raw: bytes, ranges=RANGES, *, step: int = 1 << 20, headers=HEADERS) -> bytes:
    parts = Parts(headers, ranges, len(DATA), "blob")
    pieces: list[bytes] = []
    for start in range(0, len(raw), step):
        pieces += parts.feed(raw[start : start + step])
    parts.finish()
    assert all(pieces)
    return b"".join(pieces)


@st.composite
def ranges_of_data(draw: st.DrawFn) -> list[tuple[int, int]]:
    offsets = st.integers(0, len(DATA) - 1)
    return [
        (offset, draw(st.integers(1, len(DATA) - offset)))
        for offset in draw(st.lists(offsets, min_size=2, max_size=8))
    ]


@given(ranges_of_data(), st.integers(1, 3000))
def test_however_the_body_is_cut_its_ranges_come_out(ranges, step) -> None:
    wanted = b"".join(DATA[offset : offset + length] for offset, length in ranges)
    assert taken(body(ranges), ranges, step=step) == wanted


@pytest.mark.parametrize("step", [1, 7, 5000])
@pytest.mark.parametrize(
    "changed",
    [
        lambda raw: raw.removeprefix(b"\r\n"),
        lambda raw: raw.replace(b"Content-Range", b"content-RANGE"),
        lambda raw: raw.replace(b"--b0undary\r\n", b"--b0undary  \r\n"),
        lambda raw: raw.replace(b"Content-Type: application/octet-stream\r\n", b""),
        lambda raw: raw.replace(b"/2048", b"/*"),
        lambda raw: raw + b"an epilogue\r\n\r\n of two parts",
    ],
)
def test_what_servers_may_write_otherwise(changed, step) -> None:
    wanted = b"".join(DATA[offset : offset + length] for offset, length in RANGES)
    assert taken(changed(body()), step=step) == wanted


@pytest.mark.parametrize(
    "content_type",
    [
        'multipart/byteranges; boundary="b0undary"',
        "Multipart/ByteRanges;boundary=b0undary",
        "multipart/byteranges ; boundary=b0undary ",
    ],
)
def test_ways_to_write_a_boundary(content_type: str) -> None:
    assert taken(body(), headers={"content-type": content_type})


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/octet-stream",
        "multipart/byteranges",
        "multipart/form-data; boundary=b",
        "multipart/byteranges; boundary=",
        f"multipart/byteranges; boundary={'b' * 71}",
        'multipart/byteranges; boundary="b',
        "multipart/byteranges; boundary=b\r\nX: y",
    ],
)
def test_other_bodies_are_refused_before_they_are_read(content_type: str) -> None:
    with pytest.raises(OneRangeError):
        Parts({"content-type": content_type}, RANGES, len(DATA), "blob")


@pytest.mark.parametrize("step", [1, 100, 5000])
@pytest.mark.parametrize(
    ("changed", "error"),
    [
        (lambda raw: body([(7, 1), (100, 50), *RANGES[2:]]), OneRangeError),
        (lambda raw: body([(100, 51), *RANGES[1:]]), OneRangeError),
        (lambda raw: body([(100, 70), *RANGES[1:3]]), OneRangeError),
        (lambda raw: body(RANGES[:3]), TransportError),
        (lambda raw: raw.replace(b"--b0undary\r\n", b"--b1undary\r\n"), OneRangeError),
        (lambda raw: raw.replace(b"Content-Range", b"Content-Rang"), OneRangeError),
        (lambda raw: raw.replace(b"bytes 7-7", b"bytes 7-7/9\r\nContent-Range: 1"), OneRangeError),
        (lambda raw: b"preamble\r\n" + raw, OneRangeError),
        (lambda raw: DATA + DATA, ContentError),
        (lambda raw: raw.replace(b"/2048", b"/2049"), ContentError),
        (lambda raw: raw.replace(b"Content-Type", b"X: " + b"y" * MAX_HEAD_BYTES), ContentError),
        (lambda raw: raw + bytes(MAX_HEAD_BYTES), ContentError),
        (lambda raw: raw[:-30], TransportError),
        (lambda raw: raw[:400], TransportError),
        (lambda raw: b"", TransportError),
    ],
)
def test_anything_else_is_an_error(changed, error: type[RegistryError], step: int) -> None:
    with pytest.raises(error):
        taken(changed(body()), step=step)


@given(st.binary(max_size=300), st.integers(1, 50))
def test_nothing_but_ranges_comes_out_of_noise(noise: bytes, step: int) -> None:
    with pytest.raises(RegistryError):
        taken(noise, step=step)


@given(st.data())
def test_a_changed_byte_outside_of_ranges_changes_none(data: st.DataObject) -> None:
    raw = bytearray(body())
    wanted = taken(bytes(raw))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = taken(bytes(raw))
    except RegistryError:
        return
    assert len(found) == len(wanted)
    assert sum(a != b for a, b in zip(found, wanted, strict=True)) <= 1

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import ContentError, TransportError
from registry.pieces import regroup
from registry.ranges import check_content_range, check_range, range_header


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, -1), (0, 11), (10, 1), (11, 0)])
def test_ranges_outside_are_refused(offset, length):
    with pytest.raises(ContentError, match="not inside its 10 bytes"):
        check_range(offset, length, 10, "blob")


@pytest.mark.parametrize(("offset", "length"), [(0, 0), (0, 10), (10, 0), (9, 1)])
def test_ranges_inside_are_taken(offset, length):
    check_range(offset, length, 10, "blob")


def test_header():
    assert range_header([(5, 3)]) == "bytes=5-7"
    assert range_header([(5, 3), (100, 1), (9, 2)]) == "bytes=5-7,100-100,9-10"


@pytest.mark.parametrize(
    ("header", "error"),
    [
        ("bytes 5-7/10", None),
        ("bytes 5-7/*", None),
        ("bytes 5-7/11", ContentError),
        ("bytes 5-8/10", TransportError),
        ("bytes 4-7/10", TransportError),
        ("bytes */10", TransportError),
        ("5-7/10", TransportError),
        ("", TransportError),
        (None, TransportError),
        ("bytes 5-7/10, bytes 8-9/10", TransportError),
    ],
)
def test_content_range(header, error):
    if error is None:
        check_content_range(header, 5, 3, 10, "blob")
    else:
        with pytest.raises(error, match="blob"):
            check_content_range(header, 5, 3, 10, "blob")


@given(st.lists(st.binary(max_size=30), max_size=10), st.integers(1, 20))
async def test_regroup_keeps_the_bytes(pieces, size):
    async def give():
        for piece in pieces:
            yield piece

    out = [piece async for piece in regroup(give(), size)]
    assert b"".join(out) == b"".join(pieces)
    assert all(len(piece) == size for piece in out[:-1])
    assert all(0 < len(piece) <= size for piece in out)

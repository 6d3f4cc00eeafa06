"""Profiles as documents: what is written is read again, what is broken is refused."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import ProfileError
from lazyfs.profile.document import (
    MAX_PROFILE_BYTES,
    BlockRun,
    FileRange,
    Profile,
    decode_profile,
    encode_profile,
)

IMAGE = "sha256:" + "ab" * 32
LAYERS = ("sha256:" + "01" * 32, "sha256:" + "02" * 32)
PROFILE = Profile(
    image=IMAGE,
    layers=LAYERS,
    runs=2,
    blocks=(BlockRun(1, 4, 3), BlockRun(0, 0, 1), BlockRun(1, 0, 4)),
    files=(FileRange(1, b"usr/bin/python3", 0, 4096), FileRange(0, b"na\xefve", 8192, 100)),
)

_names = st.binary(min_size=1, max_size=20).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)


@st.composite
def _profiles(draw: st.DrawFn) -> Profile:
    cuts = draw(st.lists(st.integers(0, 1000), min_size=2, unique=True).map(sorted))
    runs = [BlockRun(draw(st.integers(0, 1)), first, end - first) for first, end in pairwise(cuts)]
    files = draw(
        st.lists(
            st.builds(
                FileRange,
                st.integers(0, 1),
                st.lists(_names, min_size=1, max_size=4).map(b"/".join),
                st.integers(0, 1 << 50),
                st.integers(1, 1 << 50),
            )
        )
    )
    blocks = tuple(draw(st.permutations(runs)))
    return replace(PROFILE, runs=draw(st.integers(1, 100)), blocks=blocks, files=tuple(files))


@given(_profiles())
def test_what_is_written_is_read_again(profile: Profile) -> None:
    assert decode_profile(encode_profile(profile)) == profile


def test_the_same_profile_is_the_same_document() -> None:
    raw = encode_profile(PROFILE)
    assert encode_profile(decode_profile(raw)) == raw
    assert raw.isascii()


def test_touched_bytes_are_those_of_the_blocks() -> None:
    assert PROFILE.touched_bytes == 8 * 4096


BROKEN: list[tuple[str, object, str]] = [
    ("schemaVersion", 2, "version 1"),
    ("image", "latest", "not a digest"),
    ("image", None, "not a digest"),
    ("layers", [], "without layers"),
    ("layers", ["sha256:xyz"], "not a digest"),
    ("layers", {"0": IMAGE}, "not a list"),
    ("runs", 0, "runs"),
    ("runs", True, "runs"),
    ("blocks", [[2, 0, 1]], "layer"),
    ("blocks", [[-1, 0, 1]], "layer"),
    ("blocks", [[0, -1, 1]], "first block"),
    ("blocks", [[0, 0, 0]], "length"),
    ("blocks", [[0, 0, 1 << 60]], "length"),
    ("blocks", [[0, 0]], "blocks of a profile"),
    ("blocks", [[0, 0, 1.0]], "length"),
    ("blocks", [[0, 0, 5], [0, 4, 1]], "twice"),
    ("blocks", [[0, 4, 1], [1, 4, 1], [0, 0, 5]], "twice"),
    ("files", [[0, "a", [0, 0]]], "length"),
    ("files", [[0, "a", [-1, 1]]], "offset"),
    ("files", [[0, "a", 1]], "files of a profile"),
    ("files", [[0, "", [0, 1]]], "not a path"),
    ("files", [[0, "/etc", [0, 1]]], "not a path"),
    ("files", [[0, "a/../b", [0, 1]]], "not a path"),
    ("files", [[0, "a\0", [0, 1]]], "not a path"),
    ("files", [[0, "\ud800", [0, 1]]], "not a path"),
    ("files", [[0, "a" * 5000, [0, 1]]], "not a path"),
    ("files", [[2, "a", [0, 1]]], "layer"),
]


@pytest.mark.parametrize(("key", "value", "message"), BROKEN)
def test_a_broken_document_is_refused(key: str, value: object, message: str) -> None:
    document = json.loads(encode_profile(PROFILE)) | {key: value}
    with pytest.raises(ProfileError, match=message):
        decode_profile(json.dumps(document).encode())


@pytest.mark.parametrize("raw", [b"", b"[]", b"\xff", b"[" * 100_000, b"1" * 5000])
def test_what_is_no_document_is_refused(raw: bytes) -> None:
    with pytest.raises(ProfileError):
        decode_profile(raw)


def test_a_document_has_a_limit() -> None:
    with pytest.raises(ProfileError, match="limit"):
        decode_profile(b" " * (MAX_PROFILE_BYTES + 1))


def test_a_profile_that_nobody_could_read_is_not_written() -> None:
    with pytest.raises(ProfileError, match="twice"):
        encode_profile(replace(PROFILE, blocks=(BlockRun(0, 0, 2), BlockRun(0, 1, 2))))

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.errors import CacheError, InvalidChunkKeyError
from cache.key import DIGEST_HEX_LENGTHS, ChunkKey

HEX = "0123456789abcdef"
FORMS = st.one_of(
    st.sampled_from(["data", "frame", "table"]), st.integers(0, 10**9).map(lambda n: f"hash-{n}")
)
KEYS = st.sampled_from(sorted(DIGEST_HEX_LENGTHS.items())).flatmap(
    lambda row: st.builds(
        ChunkKey, st.just(row[0]), st.text(HEX, min_size=row[1], max_size=row[1]), FORMS
    )
)


def test_a_key_names_a_file_by_algorithm_first_digits_digest_and_form():
    digest = "ab" + "0" * 126
    assert ChunkKey("sha512", digest, "data").relative_path == f"sha512/ab/{digest}.data"
    assert ChunkKey("sha512", digest, "hash-7").file_name == f"sha512-{digest}.hash-7"


@given(KEYS, KEYS)
def test_different_keys_have_different_names(one: ChunkKey, other: ChunkKey):
    assert (one == other) == (one.relative_path == other.relative_path)
    assert (one == other) == (one.file_name == other.file_name)


@given(KEYS)
def test_a_good_key_stays_in_the_store(key: ChunkKey):
    parts = PurePosixPath(key.relative_path).parts
    assert len(parts) == 3
    assert all(part.strip(".") == part and len(part) < 200 for part in parts)
    assert "/" not in key.file_name


@pytest.mark.parametrize(
    "key",
    [
        ChunkKey("md5", "0" * 32, "data"),
        ChunkKey("..", "0" * 128, "data"),
        ChunkKey("SHA512", "0" * 128, "data"),
        ChunkKey("sha512", "0" * 127, "data"),
        ChunkKey("sha512", "0" * 129, "data"),
        ChunkKey("sha512", "A" * 128, "data"),
        ChunkKey("sha512", "0" * 127 + "\n", "data"),
        ChunkKey("sha512", "\u0660" * 128, "data"),
        ChunkKey("sha512", "../" * 42 + "..", "data"),
        ChunkKey("sha256", "0" * 128, "data"),
        ChunkKey("sha256", "0" * 64, ""),
        ChunkKey("sha256", "0" * 64, "data\n"),
        ChunkKey("sha256", "0" * 64, "hash-"),
        ChunkKey("sha256", "0" * 64, "hash-01"),
        ChunkKey("sha256", "0" * 64, "hash--1"),
        ChunkKey("sha256", "0" * 64, "hash-1.data"),
        ChunkKey("sha256", "0" * 64, "../../data"),
        ChunkKey("sha256", "0" * 64, "d" * 17),
    ],
)
def test_what_is_no_key_names_nothing(key: ChunkKey):
    with pytest.raises(InvalidChunkKeyError):
        _ = key.relative_path
    with pytest.raises(InvalidChunkKeyError):
        _ = key.file_name


@given(st.text(), st.text(), st.text())
def test_only_the_packages_own_error_escapes(algorithm: str, digest: str, form: str):
    try:
        path = ChunkKey(algorithm, digest, form).relative_path
    except CacheError:
        return
    assert set(path) <= set("abcdefghijklmnopqrstuvwxyz0123456789-./")

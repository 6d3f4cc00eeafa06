"""Media types and annotations of layers."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import PlanError
from lazyfs.model import ByteRange
from lazyfs.seekable.annotations import (
    CHUNK_DIGEST,
    CHUNK_TABLE_OFFSET,
    KEYS,
    ROOT_DIGEST,
    VERITY_OFFSET,
    SeekableAnnotations,
    parse_annotations,
)
from lazyfs.seekable.mediatypes import LayerEncoding, is_erofs_layer
from lazyfs.seekable.pointers import Pointers, TablePointer, TreePointer

DATA = Path(__file__).parent.parent / "data" / "containerd-seekable"
GOOD = SeekableAnnotations(100, b"\x11" * 64, 200, b"\x22" * 64)


def test_media_types():
    assert is_erofs_layer("application/vnd.erofs.layer.v1") is LayerEncoding.RAW
    assert is_erofs_layer("application/vnd.erofs.layer.v1+zstd") is LayerEncoding.ZSTD
    assert is_erofs_layer("application/vnd.oci.image.layer.v1.tar+zstd") is None
    assert is_erofs_layer("application/vnd.erofs.layer.v10") is None
    for other in ("+gzip", "+zstd+zstd", "+", "+ZSTD"):
        with pytest.raises(PlanError, match="unknown encoding"):
            is_erofs_layer("application/vnd.erofs.layer.v1" + other)


def test_annotations_that_containerd_wrote():
    layers = json.loads((DATA / "layers.json").read_text())
    parsed = parse_annotations(layers["verity4096"]["annotations"])
    assert parsed is not None
    assert (parsed.chunk_table_offset, parsed.verity_offset) == (381, 484)
    assert parsed.encode() == layers["verity4096"]["annotations"]
    plain = parse_annotations(layers["plain"]["annotations"])
    assert plain is not None
    assert (plain.verity_offset, plain.root_digest) == (None, None)
    assert plain.encode() == layers["plain"]["annotations"]


def test_none_of_the_keys_means_no_table():
    assert parse_annotations({}) is None
    assert parse_annotations({"org.example": "x"}) is None


def test_a_sha256_root_is_taken():
    annotations = GOOD.encode() | {ROOT_DIGEST: "sha256:" + "ab" * 32}
    parsed = parse_annotations(annotations)
    assert parsed is not None
    assert parsed.root_digest == b"\xab" * 32
    assert parsed.encode() == annotations


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key_beside_others_is_refused(key):
    annotations = GOOD.encode()
    del annotations[key]
    with pytest.raises(PlanError, match=f"{key} is missing"):
        parse_annotations(annotations)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (CHUNK_TABLE_OFFSET, ""),
        (CHUNK_TABLE_OFFSET, "-1"),
        (CHUNK_TABLE_OFFSET, "+1"),
        (CHUNK_TABLE_OFFSET, "1_0"),
        (CHUNK_TABLE_OFFSET, " 1"),
        (CHUNK_TABLE_OFFSET, "\u0661"),
        (CHUNK_TABLE_OFFSET, "9223372036854775808"),
        (VERITY_OFFSET, "0x10"),
        (VERITY_OFFSET, "100"),
        (CHUNK_DIGEST, "sha256:" + "11" * 32),
        (CHUNK_DIGEST, "sha512:" + "11" * 63),
        (CHUNK_DIGEST, "sha512:" + "AA" * 64),
        (CHUNK_DIGEST, "11" * 64),
        (CHUNK_DIGEST, ""),
        (ROOT_DIGEST, "md5:" + "11" * 16),
        (ROOT_DIGEST, "sha256:" + "11" * 64),
        (ROOT_DIGEST, "sha512:" + "zz" * 64),
    ],
)
def test_malformed_values_are_refused(key, value):
    with pytest.raises(PlanError, match="annotation"):
        parse_annotations(GOOD.encode() | {key: value})


def test_pointers_to_the_metadata_frames():
    table = TablePointer(ByteRange(100, 100), framed=True, digest=b"\x11" * 64)
    tree = TreePointer(b"\x22" * 64, 200, in_content=False)
    assert GOOD.pointers(300) == Pointers(table, tree, 100, compressed=True)
    plain = SeekableAnnotations(100, b"\x11" * 64)
    found = plain.pointers(131)
    assert found.tree is None
    assert found.table is not None
    assert found.table.where == ByteRange(100, 31)
    for size in (130, 99, 0):
        with pytest.raises(PlanError, match="does not fit"):
            plain.pointers(size)
    with pytest.raises(PlanError, match="passes the end"):
        GOOD.pointers(207)
    with pytest.raises(PlanError, match="does not fit"):
        GOOD.pointers(150)


@given(st.dictionaries(st.sampled_from(KEYS), st.text(max_size=140)))
def test_any_values_give_annotations_or_an_error(values):
    try:
        parsed = parse_annotations(values)
    except PlanError:
        return
    assert (parsed is None) == (not values)


@given(
    st.integers(0, 2**63 - 1),
    st.binary(min_size=64, max_size=64),
    st.sampled_from([32, 64]),
)
def test_round_trip(offset, digest, root_size):
    plain = SeekableAnnotations(offset, digest)
    assert parse_annotations(plain.encode()) == plain
    full = SeekableAnnotations(offset // 2, digest, offset // 2 + 1, digest[:root_size])
    assert parse_annotations(full.encode()) == full

"""Opening a layer: one request where that is enough, and a reason where it cannot be."""

import dataclasses
import hashlib

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.errors import (
    DigestMismatchError,
    HashBlockMismatchError,
    ImageFormatError,
    LazyfsError,
    PlanError,
    SourceUnavailableError,
    TruncatedRecordError,
)
from lazyfs.layer.metadata import HEAD_BYTES, fetch_metadata
from lazyfs.layer.whole import WholeLayer
from lazyfs.model import ByteRange, VerifyMode
from lazyfs.seekable.ondisk import TABLE_HEADER
from lazyfs.seekable.skippable import encode_skippable_header
from lazyfs.verity.params import decode_superblock, encode_superblock
from tests.support import layer_builder as build
from tests.support.blob_simulator import BlobSimulator
from tests.support.layer_builder import HEADER, Layer, Verity
from tests.support.layer_rig import noise, rigged

IMAGE = noise(200_000)
LAYER = build.seekable(IMAGE)
SPEC = build.spec_seekable(IMAGE)


def spliced(layer: Layer, offset: int, data: bytes) -> Layer:
    """The blob with other bytes in it, as long as before."""
    blob = layer.blob[:offset] + data + layer.blob[offset + len(data) :]
    assert len(blob) == len(layer.blob)
    return dataclasses.replace(layer, blob=blob)


def with_table(layer: Layer, table: bytes) -> Layer:
    """Another chunk table of the same length, with its digest."""
    digest = f"sha512:{hashlib.sha512(table).hexdigest()}"
    return spliced(layer, layer.table.offset, table).changed(chunk_digest=digest)


def table_of(layer: Layer) -> bytes:
    return layer.blob[layer.table.offset : layer.table.end]


def with_superblock(layer: Layer, **changes: object) -> Layer:
    params = decode_superblock(layer.blob[layer.tree.offset :])
    changed = encode_superblock(dataclasses.replace(params, **changes))  # type: ignore[arg-type]
    return spliced(layer, layer.tree.offset, changed)


async def refusal(layer: Layer, verify: VerifyMode = VerifyMode.ALWAYS) -> LazyfsError:
    with pytest.raises(LazyfsError) as caught:
        async with rigged() as rig:
            await rig.open(layer, verify)
    message = str(caught.value)
    assert message.startswith("test/image layer 1: ")
    assert "\n" not in message
    return caught.value


async def requests(layer: Layer) -> list[ByteRange]:
    """What opening asks for."""
    blob = BlobSimulator(layer.blob)
    pointers = layer.plan().pointers
    assert pointers is not None
    await fetch_metadata(pointers, blob)
    return blob.requests


async def test_opening_is_one_request():
    table, tree = LAYER.table, LAYER.tree
    assert await requests(LAYER) == [ByteRange(table.offset - HEADER, tree.end - table.offset + 8)]
    no_tree = build.seekable(IMAGE, verity=None)
    assert await requests(no_tree) == [
        ByteRange(no_tree.table.offset - 8, no_tree.table.length + 8)
    ]


async def test_opening_takes_no_more_than_the_top_of_a_large_tree():
    layer = build.seekable(bytes(4 << 20), verity=Verity(512))
    assert layer.tree.length > 4 * HEAD_BYTES
    (where,) = await requests(layer)
    assert where.length == layer.table.length + HEADER + HEAD_BYTES + HEADER


async def test_with_the_tree_in_the_chunks_opening_is_two_requests():
    index, tree = await requests(SPEC)
    assert index == ByteRange(SPEC.table.offset - HEADER, SPEC.table.length + HEADER)
    assert tree in SPEC.frames


async def test_a_source_that_is_gone_is_named():
    blob = BlobSimulator(LAYER.blob)
    blob.down = True
    with pytest.raises(SourceUnavailableError, match=r"^test/image layer 1: registry\.test: "):
        async with rigged() as rig:
            await rig.open(LAYER, blob=blob)


@pytest.mark.parametrize("bit", [0, 3, 7])
@pytest.mark.parametrize("where", ["header", "offset", "digest", "end"])
async def test_a_table_that_was_changed_is_refused(where: str, bit: int):
    at = {"header": 4, "offset": TABLE_HEADER.size_bytes, "digest": 40, "end": -1}[where]
    offset = (LAYER.table.end if at < 0 else LAYER.table.offset) + at
    error = await refusal(LAYER.flipped(offset, 1 << bit))
    assert type(error) is DigestMismatchError
    assert "chunk table of" in str(error)
    assert "wanted sha512:" in str(error)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"\x28\xb5\x2f\xfd\0\0\0\0", "chunk table at byte .* not a skippable frame"),
        (bytes(8), "chunk table at byte .* not a skippable frame"),
        (b"\x50\x2a\x4d\x18\xff\xff\xff\xff", "chunk table .* skippable frame of 4294967295 bytes"),
        (encode_skippable_header(LAYER.table.length + 1), "skippable frame of"),
        (encode_skippable_header(LAYER.table.length - 1), "wanted sha512"),
        (encode_skippable_header(0), "wanted sha512"),
    ],
)
async def test_a_broken_frame_around_the_table_is_refused(header: bytes, message: str):
    error = await refusal(spliced(LAYER, LAYER.table.offset - HEADER, header))
    with pytest.raises(type(error), match=message):
        raise error


@pytest.mark.parametrize(
    ("at", "data", "message"),
    [
        (0, b"NOPE", "not a chunk table"),
        (8, bytes(8), "0 chunks need"),
        (8, b"\xff" * 8, "chunks need|at most|bytes"),
        (16, bytes(4), "chunk size is 0"),
        (TABLE_HEADER.size_bytes, b"\1" + bytes(7), "first frame begins at 1"),
        (TABLE_HEADER.size_bytes + 72, bytes(8), "frame 0 begins at 0 and ends at 0"),
        (TABLE_HEADER.size_bytes + 72, b"\xff" * 8, "frame 0 begins at 0 and ends at 1844"),
    ],
)
async def test_a_promised_table_that_is_broken_is_refused(at: int, data: bytes, message: str):
    table = bytearray(table_of(LAYER))
    table[at : at + len(data)] = data
    error = await refusal(with_table(LAYER, bytes(table)))
    assert isinstance(error, ImageFormatError)
    with pytest.raises(ImageFormatError, match=message):
        raise error


@pytest.mark.parametrize(("at", "value"), [(4, 2), (20, 9)])
async def test_a_table_of_another_kind_makes_the_layer_whole(at: int, value: int):
    table = bytearray(table_of(LAYER))
    table[at] = value
    layer = with_table(LAYER, bytes(table))
    async with rigged() as rig:
        opened = await rig.open(layer)
        assert isinstance(opened.reader, WholeLayer)
        assert opened.opened.why.startswith("fetched whole: chunk table ")
        await opened.expect_all()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (bytes(8), "dm-verity tree at byte .* not a skippable frame"),
        (
            encode_skippable_header(0xFFFFFFFF),
            "dm-verity tree at byte .* 4294967295 bytes, at most",
        ),
        (encode_skippable_header(100), "Superblock"),
        (encode_skippable_header(512), "payload of 512 bytes, the tree needs"),
        (encode_skippable_header(LAYER.tree.length - 1), "dm-verity payload"),
    ],
)
async def test_a_broken_frame_around_the_tree_is_refused(header: bytes, message: str):
    error = await refusal(spliced(LAYER, LAYER.tree.offset - HEADER, header))
    with pytest.raises(ImageFormatError, match=message):
        raise error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_blocks": 48}, "dm-verity tree over 48 blocks of 4096 bytes for an image of 200000"),
        ({"data_blocks": 50}, "over 50 blocks"),
        ({"data_blocks": 1}, "over 1 blocks"),
        ({"data_blocks": 2**50}, "over 1125899906842624 blocks"),
        ({"data_block_size_bytes": 512}, "over 49 blocks of 512 bytes"),
        ({"algorithm": "sha256"}, "root digest of 64 bytes for sha256"),
    ],
)
async def test_a_superblock_that_does_not_fit_is_refused(changes: dict, message: str):
    error = await refusal(with_superblock(LAYER, **changes))
    assert isinstance(error, ImageFormatError)
    assert message in str(error)


@pytest.mark.parametrize("changes", [{"salt": b"x"}, {"hash_block_size_bytes": 2048}])
async def test_a_superblock_that_fits_but_is_another_proves_nothing(changes: dict):
    error = await refusal(with_superblock(LAYER, **changes))
    assert isinstance(error, HashBlockMismatchError)


@pytest.mark.parametrize("layer", [LAYER, SPEC], ids=["containerd", "spec"])
async def test_a_root_digest_of_the_other_algorithm_is_refused(layer: Layer):
    error = await refusal(layer.changed(root_digest="sha256:" + "a" * 64))
    assert isinstance(error, ImageFormatError)
    assert "root digest of 32 bytes for sha512" in str(error)


@pytest.mark.parametrize("layer", [LAYER, SPEC], ids=["containerd", "spec"])
async def test_another_root_digest_is_refused(layer: Layer):
    error = await refusal(layer.changed(root_digest="sha512:" + "a" * 128))
    assert isinstance(error, HashBlockMismatchError)


async def test_a_block_size_other_than_promised_is_refused():
    layer = build.spec_seekable(noise(204_800))
    error = await refusal(layer.changed(block_size="8192"))
    assert "blocks of 4096 bytes, promised were 8192" in str(error)


@pytest.mark.parametrize("size", [1, 511, 4096])
@pytest.mark.parametrize("form", [build.seekable, build.spec_seekable])
async def test_an_image_of_one_block_has_no_tree_but_a_root(form, size: int):
    layer = form(noise(size))
    async with rigged() as rig:
        opened = await rig.open(layer)
        await opened.expect_all()
        assert len(opened.blob.requests) == 1
        assert "dm-verity" in opened.opened.proof
    wrong = layer.changed(root_digest="sha512:" + "b" * 128)
    async with rigged() as rig:
        opened = await rig.open(wrong)
        with pytest.raises(LazyfsError, match=r"data block 0 .*wanted sha512:bbb"):
            await opened.reader.read(0, 1)


async def test_the_tree_of_one_block_may_be_nothing_but_its_superblock():
    """That is what containerd writes."""
    layer = build.seekable(noise(4000))
    cut = layer.tree.offset + 512
    assert layer.tree.length == 4096
    header = encode_skippable_header(512)
    blob = layer.blob[: layer.tree.offset - HEADER] + header + layer.blob[layer.tree.offset : cut]
    layer = dataclasses.replace(layer, blob=blob)
    async with rigged() as rig:
        opened = await rig.open(layer)
        await opened.expect_all()


async def test_an_image_of_nothing_is_read_as_that():
    async with rigged() as rig:
        opened = await rig.open(build.seekable(b"", verity=None))
        assert opened.reader.size_bytes == 0
        assert await opened.reader.read(0, 0) == b""
        with pytest.raises(TruncatedRecordError):
            await opened.reader.read(0, 1)


async def test_a_tree_over_an_image_of_nothing_is_refused():
    empty = build.seekable(b"", verity=None)
    tree = build.seekable(b"x")
    start = len(empty.blob)
    blob = empty.blob + tree.blob[tree.tree.offset - HEADER :]
    said = empty.annotations | {
        "dev.containerd.erofs.dmverity.offset": str(start),
        "dev.containerd.erofs.dmverity.root_digest": tree.annotations[
            "dev.containerd.erofs.dmverity.root_digest"
        ],
    }
    error = await refusal(dataclasses.replace(empty, blob=blob, annotations=said))
    assert "over 1 blocks of 4096 bytes for an image of 0 bytes" in str(error)


@pytest.mark.parametrize(
    "changes",
    [
        {"table_offset": str(len(LAYER.blob))},
        {"table_offset": str(len(LAYER.blob) - 8)},
        {"table_offset": "9223372036854775807"},
        {"table_offset": "18446744073709551616"},
        {"table_offset": "-1"},
        {"table_offset": "0x10"},
        {"table_offset": "12 "},
        {"table_offset": "\n"},
        {"table_offset": None},
        {"chunk_digest": "sha256:" + "a" * 64},
        {"chunk_digest": "sha512:" + "A" * 128},
        {"chunk_digest": "sha512:\n"},
        {"chunk_digest": None},
        {"dmverity_offset": str(len(LAYER.blob) - 7)},
        {"dmverity_offset": str(len(LAYER.blob) + 1)},
        {"dmverity_offset": "0"},
        {"dmverity_offset": None},
        {"root_digest": "md5:" + "a" * 32},
        {"root_digest": None},
    ],
)
def test_annotations_that_say_nonsense_are_refused_before_anything_is_fetched(changes: dict):
    with pytest.raises(PlanError) as caught:
        LAYER.changed(**changes).plan()
    assert "\n" not in str(caught.value)


annotation_values = st.one_of(
    st.integers(0, len(LAYER.blob) + 100).map(str), st.text(max_size=80), st.none()
)


@given(
    st.sampled_from([LAYER, SPEC]),
    st.dictionaries(
        st.sampled_from(["table_offset", "chunk_digest", "offset", "root_digest", "block_size"]),
        annotation_values,
        max_size=3,
    ),
    st.lists(st.tuples(st.integers(0, 500), st.binary(min_size=1, max_size=9)), max_size=3),
    st.sampled_from(VerifyMode),
)
@settings(max_examples=300)
def test_whatever_manifest_and_blob_say_only_our_errors_come_out(layer, said, splices, verify):
    for short, value in said.items():
        names = [name for name in layer.annotations if name.replace("_", "").endswith(short)]
        if names:
            layer = dataclasses.replace(
                layer,
                annotations={
                    name: text
                    for name, text in (layer.annotations | {names[0]: value}).items()
                    if text is not None
                },
            )
    for place, data in splices:
        at = min(layer.table.offset - HEADER + place, len(layer.blob) - len(data))
        layer = spliced(layer, at, data)

    async def main() -> None:
        async with rigged() as rig:
            try:
                opened = await rig.open(layer, verify)
                await opened.reader.read(0, opened.reader.size_bytes)
            except LazyfsError as error:
                assert "\n" not in str(error)  # noqa: PT017

    trio.run(main)

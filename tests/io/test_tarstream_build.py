"""From tar bytes to an image, read back by the project's reader."""

import io
import os
import random
import stat
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.convert.build import BuildOptions, build_image
from lazyfs.convert.cutting import cut
from lazyfs.errors import ConversionError
from lazyfs.model import ByteRange
from tests.support import tar_samples as tars
from tests.support.built import built, built_with_statistics
from tests.support.erofs_reader import ImageInMemory

NOISE = random.Random(1).randbytes(1 << 20)


def test_an_empty_tar_is_an_image_of_a_root():
    image, statistics = built_with_statistics(b"")
    assert len(image) == 4096
    assert list(ImageInMemory(image).tree()) == [b"."]
    assert (statistics.entries, statistics.data_bytes, statistics.metadata_bytes) == (0, 0, 4096)
    assert built(tars.END) == image


def test_every_entry_reads_back():
    tree = ImageInMemory(built(tars.odd_layer())).tree()
    assert tree[b"."].mode == stat.S_IFDIR | 0o751
    assert tree[b"absolute/name"].content == b"confined"
    assert tree[b"absolute"].owner == (7, 0)
    assert tree[tars.LONG_NAME].content == b"long name"
    assert tree[b"caf\xe9\xff\n"].content == b"not UTF-8"
    assert tree[b"owner"].owner == (4_000_000_000, 70_000)
    assert tree[b"exact"].mtime_ns == 1_700_000_000_123_456_789
    assert tree[b"before-epoch"].mtime_ns == -1_250_000_000
    assert tree[b"large-minor"].rdev == (259, 70_000)
    assert tree[b"etc/linked-too"].nid == tree[b"linked"].nid
    assert tree[b"linked"].nlink == 3
    assert tree[b"acl"].xattrs == {b"system.posix_acl_access": tars.ACL}
    assert tree[b"sparse"].content[4096:12288] == b"a" * 8192
    assert tree[b"sparse"].content[9_000_000] == ord("b")


def test_the_same_tar_gives_the_same_image():
    layer = tars.odd_layer()
    assert built(layer) == built(layer)
    assert built(layer) != built(layer.replace(b"confined", b"CONFINED"))


def test_statistics_add_up():
    image, statistics = built_with_statistics(
        tars.tar(
            tars.directory(b"d"),
            tars.file(b"f", b"x" * 5000),
            tars.pax({b"SCHILY.xattr.com.apple.x": b"1"}) + tars.file(b"g", b"x"),
        )
    )
    assert statistics.entries == 3
    assert statistics.data_bytes == 3 * 4096
    assert statistics.metadata_bytes == 4096
    assert statistics.dropped_xattrs == 1
    assert len(image) == 4 * 4096


def test_any_range_can_be_read_from_any_thread():
    layer = tars.tar(*(tars.file(b"%d" % n, bytes([n]) * n * 100) for n in range(100)))
    whole = built(layer)
    with tempfile.TemporaryFile() as spool:
        image = build_image(io.BytesIO(layer), spool)
        assert image.size_bytes == len(whole)
        ranges = [(at * 997 % len(whole), at * 131 % 20_000) for at in range(400)]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda r: image.read(*r), ranges))
        assert found == [whole[offset : offset + length] for offset, length in ranges]
        assert image.read(len(whole), 10) == b""
        assert image.read(len(whole) - 3, 10) == whole[-3:]
        assert image.read(0, 0) == b""


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("in_files", [False, True])
def test_chunks_that_are_told_early_are_chunks_of_the_image(free, in_files):
    chooser = random.Random(3)
    members = [
        tars.file(b"%d" % n, chooser.randbytes(chooser.choice([1, 5000, 200_000, 3 << 20])))
        for n in range(40)
    ]
    sparse = tars.sparse_1_0(b"sparse", 4 << 20, [(0, b"x"), (3 << 20, NOISE[: 1 << 20])])
    options = BuildOptions(
        chunk_size_bytes=256 << 10, free_chunks=free, file_borders=in_files and free
    )
    told: list[ByteRange] = []
    with tempfile.TemporaryFile() as spool:

        def on_chunks(chunks: Sequence[ByteRange]) -> None:
            end = os.fstat(spool.fileno()).st_size
            assert all(chunk.end <= end for chunk in chunks)
            told.extend(chunks)

        image = build_image(
            io.BytesIO(tars.tar(*members, sparse)), spool, options=options, on_chunks=on_chunks
        )
        borders = image.borders if free else ()
        chunks = list(cut(image.size_bytes, borders, 256 << 10))
        early = [ByteRange(chunk.offset + image.early_start, chunk.length) for chunk in told]
        assert len(early) > 0.8 * len(chunks)
        assert early == [chunk for chunk in chunks if chunk in set(early)]
        assert len(early) == len(set(early))


def test_a_small_image_has_no_early_chunks_where_they_have_one_size():
    told: list[object] = []
    with tempfile.TemporaryFile() as spool:
        layer = tars.tar(tars.file(b"a", bytes(7 << 20)))
        options = BuildOptions(chunk_size_bytes=1 << 20)
        build_image(io.BytesIO(layer), spool, options=options, on_chunks=told.append)
    assert told == []


def test_progress_is_told_on_the_calling_thread():
    told: list[tuple[int, int]] = []
    layer = tars.tar(tars.file(b"a", bytes(3 << 20)))
    with tempfile.TemporaryFile() as spool:
        build_image(
            io.BytesIO(layer), spool, lambda done: told.append((done, threading.get_ident()))
        )
    assert told[-1] == (len(layer), threading.get_ident())


def test_whiteouts_by_name():
    def layer(*names: bytes) -> bytes:
        return tars.tar(*(tars.file(name) for name in names))

    tree = ImageInMemory(
        built(
            layer(
                b"./a/.wh.gone",
                b".wh.top",
                b"b/.wh..wh..opq",
                b".wh..wh.plnk",
                b".wh..wh.plnk/5.1",
            )
        )
    ).tree()
    assert sorted(tree) == [b".", b"a", b"a/gone", b"b", b"top"]
    assert stat.S_ISCHR(tree[b"a/gone"].mode)
    assert stat.S_ISCHR(tree[b"top"].mode)
    assert tree[b"b"].xattrs == {b"trusted.overlay.opaque": b"y"}
    for name in (b".wh.", b"a/.wh..", b".wh...", b"c/.wh.x/y"):
        with pytest.raises(ConversionError, match="whiteout"):
            built(layer(name))


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ([tars.file(b"a/../b")], "a/../b"),
        ([tars.file(b"../b")], "../b"),
        ([tars.hard_link(b"link", b"missing")], "'link': hard link to 'missing'"),
        ([tars.hard_link(b"link", b"../missing")], "'link': hard link to '../missing'"),
        ([tars.gnu_long(b"d/" + b"n" * 256) + tars.file(b"n")], "256 bytes"),
        ([tars.gnu_long(b"p/" * 2100) + tars.file(b"n")], "4200 bytes"),
        ([tars.file(b"./", b"")], None),
        ([tars.symlink(b".", b"t")], "root"),
        ([tars.header(b"n", kind=b"3", device=(5000, 1))], "5000:1"),
        ([tars.file(b"f"), tars.file(b"f/g")], "f/g"),
        ([tars.pax({b"path": b"a\0b"}) + tars.file(b"n")], "NUL"),
    ],
)
def test_entries_that_cannot_be_are_named(members, named):
    if named is None:
        assert list(ImageInMemory(built(tars.tar(*members))).tree()) == [b"."]
        return
    with pytest.raises(ConversionError) as caught:
        built(tars.tar(*members))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=60)
@given(st.data())
def test_damaged_tars_give_an_image_or_a_conversion_error(data):
    stream = bytearray(tars.odd_layer()[:40_000])
    for _ in range(data.draw(st.integers(1, 4))):
        at = 512 * data.draw(st.integers(0, len(stream) // 512 - 1))
        block = stream[at : at + 512]
        block[data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        stream[at : at + 512] = block
    try:
        image = built(bytes(stream))
    except ConversionError:
        return
    ImageInMemory(image).tree()

"""What is hot goes to the front of an image, and every file stays what it was."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.erofs.build.builder import EntryAttributes, ImageBuilder
from lazyfs.erofs.build.front import EXCESS, HotRange
from lazyfs.erofs.build.order import BlockSpan, DataOrder
from lazyfs.erofs.ondisk import EROFS_INODE_CHUNK_BASED, EROFS_INODE_FLAT_PLAIN
from lazyfs.model import ByteRange
from lazyfs.steps import Need, run
from tests.support.erofs_reader import ImageInMemory

BLOCK = 4096
PLAIN = EntryAttributes(0o644, 0, 0, 0, {})
MEBI = 1 << 20


class Spooled(bytearray):
    def append(self, data: bytes | memoryview) -> None:  # type: ignore[override]
        self.extend(data)


class Built:
    """A flat tree of files, with some of them hot."""

    def __init__(self, files: dict[bytes, list[tuple[int, bytes]]], hot: list[HotRange]) -> None:
        spool = Spooled()
        builder = ImageBuilder(spool)
        for path, segments in files.items():
            size = max((offset + len(data) for offset, data in segments), default=0)
            ranges = [ByteRange(offset, len(data)) for offset, data in segments]
            builder.add_file(path, PLAIN, size, ranges, (data for _, data in segments))
        self.order = builder.arrange(hot)
        metadata = builder.finish()
        self.missing = builder.missing
        self.hot_metadata = builder.hot_metadata
        self.data_start = len(metadata)
        data = b"".join(
            spool[span.first * BLOCK : span.end * BLOCK]
            for span in self.order.spooled(0, len(spool) // BLOCK)
        )
        self.image = ImageInMemory(bytes(metadata) + data)
        self.front_end = self.data_start + self.order.front_blocks * BLOCK
        self.seen: list[Need] = []

    def _read(self, need: Need) -> bytes:
        self.seen.append(need)
        return self.image.data[need.offset : need.offset + need.length]

    def read(self, path: bytes, offset: int, length: int) -> list[Need]:
        """What of the image reading a part of a file asks for."""
        self.seen = []
        root = run(self.image.image.inode(self.image.image.root_nid), self._read)
        entry = run(self.image.image.lookup(root, path), self._read)
        inode = run(self.image.image.inode(entry.nid), self._read)
        run(self.image.image.read(inode, offset, length), self._read)
        return self.seen

    def layout(self, path: bytes) -> int:
        image = self.image.image
        root = run(image.inode(image.root_nid), self._read)
        entry = run(image.lookup(root, path), self._read)
        return run(image.inode(entry.nid), self._read).layout


def dense(size: int, seed: int = 0) -> list[tuple[int, bytes]]:
    """A file each of whose blocks is unlike the others."""
    blocks = (b"%d %d" % (seed, number) for number in range(-(-size // BLOCK)))
    return [(0, b"".join(block.ljust(BLOCK, b".") for block in blocks)[:size])]


@st.composite
def spans_of(draw: st.DrawFn) -> tuple[list[BlockSpan], int]:
    blocks = draw(st.integers(0, 60))
    marks = sorted(draw(st.sets(st.integers(0, blocks), max_size=12)))
    between = [BlockSpan(first, end - first) for first, end in pairwise(marks)]
    chosen = draw(st.lists(st.sampled_from(between), unique=True)) if between else []
    return chosen, blocks


@given(spans_of())
def test_an_order_is_a_permutation_with_the_front_in_front(given_spans):
    front, blocks = given_spans
    order = DataOrder(front, blocks)
    image = [block for span in order.spooled(0, blocks) for block in range(span.first, span.end)]
    wanted = [block for span in front for block in range(span.first, span.end)]
    assert image[: order.front_blocks] == wanted
    assert image[order.front_blocks :] == sorted(set(range(blocks)) - set(wanted))
    assert [order.place(block) for block in image] == list(range(blocks))
    for first in range(0, blocks, 7):
        length = min(9, blocks - first)
        assert image[first : first + length] == [
            block for span in order.spooled(first, length) for block in range(span.first, span.end)
        ]
        assert [image.index(block) for block in range(first, first + length)] == [
            block for span in order.placed(first, length) for block in range(span.first, span.end)
        ]


def test_spans_that_overlap_are_a_mistake():
    with pytest.raises(AssertionError):
        DataOrder([BlockSpan(0, 2), BlockSpan(1, 2)], 4)


FILES = st.lists(
    st.one_of(
        st.integers(0, 20 * BLOCK).map(dense),
        st.lists(st.integers(0, 40), min_size=1, max_size=6, unique=True).map(
            lambda blocks: [(block * BLOCK, b"%d" % block * 99) for block in sorted(blocks)]
        ),
    ),
    max_size=6,
)
RANGES = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 50 * BLOCK), st.integers(1, 30 * BLOCK)),
    max_size=12,
)


@given(FILES, RANGES)
def test_files_stay_what_they_were_and_hot_bytes_are_in_front(files, ranges):
    named = {b"%d" % number: segments for number, segments in enumerate(files)}
    hot = [HotRange(b"%d" % number, offset, length) for number, offset, length in ranges]
    plain, built = Built(named, []), Built(named, hot)
    contents = {path: found.content for path, found in plain.image.tree().items()}
    assert contents == {path: found.content for path, found in built.image.tree().items()}
    assert len(plain.image.data) <= len(built.image.data)
    assert set(built.missing) == {path for path, _, _ in hot} - set(named)
    for path, offset, length in hot:
        if path not in named:
            continue
        data_needs = [n for n in built.read(path, offset, length) if n.offset >= built.data_start]
        assert all(need.offset + need.length <= built.front_end for need in data_needs)


def test_first_use_makes_the_order():
    files = {b"a": dense(9 * BLOCK, 1), b"b": dense(5 * BLOCK, 2), b"c": dense(BLOCK, 3)}
    built = Built(files, [HotRange(b"c", 0, 1), HotRange(b"a", 0, 9 * BLOCK), HotRange(b"b", 0, 1)])
    starts = {path: built.read(path, 0, 10)[-1].offset for path in files}
    assert sorted(starts, key=starts.__getitem__) == [b"c", b"a", b"b"]
    assert starts[b"c"] == built.data_start


def test_of_a_large_file_only_what_is_hot_comes_to_the_front():
    files = {b"cold": dense(MEBI, 1), b"lib": dense(4 * MEBI, 2)}
    hot = [HotRange(b"lib", 0, 8192), HotRange(b"lib", 3 * MEBI, 128 << 10)]
    built = Built(files, hot)
    assert built.layout(b"lib") == EROFS_INODE_CHUNK_BASED
    assert built.layout(b"cold") == EROFS_INODE_FLAT_PLAIN
    touched = 8192 + (128 << 10)
    assert touched <= built.order.front_blocks * BLOCK <= touched * (EXCESS + 1) // EXCESS


def test_a_file_that_is_nearly_all_hot_stays_in_one_piece():
    built = Built({b"x": dense(MEBI), b"f": dense(MEBI)}, [HotRange(b"f", 0, MEBI - 70_000)])
    assert built.layout(b"f") == EROFS_INODE_FLAT_PLAIN
    assert built.order.front_blocks * BLOCK == MEBI


def test_an_image_without_anything_hot_is_as_before():
    files = {b"a": dense(9 * BLOCK, 1), b"sparse": [(40 * BLOCK, b"x"), (90 * BLOCK, b"y")]}
    nowhere = [HotRange(b"none", 0, 1), HotRange(b"a/under", 0, 1), HotRange(b"a", 1 << 40, 1)]
    built = Built(files, nowhere)
    assert built.image.data == Built(files, []).image.data
    assert built.missing == (b"none", b"a/under")


def test_a_hole_of_exbibytes_costs_nothing():
    files = {b"f": [(0, b"x"), ((1 << 40) - 4096, b"y" * 4096)]}
    built = Built(files, [HotRange(b"f", 0, 1 << 60)])
    assert built.order.front_blocks * BLOCK == len(built.image.data) - built.data_start


def test_blocks_of_metadata_are_those_that_a_read_asks_for():
    files = {b"%04d" % number: dense(BLOCK, number) for number in range(2000)}
    built = Built(files, [HotRange(b"1234", 0, 1)])
    in_metadata = [need for need in built.read(b"1234", 0, 1) if need.offset < built.data_start]
    assert in_metadata
    for need in in_metadata:
        blocks = range(need.offset // BLOCK, -(-(need.offset + need.length) // BLOCK))
        assert all(
            any(span.first <= block < span.end for span in built.hot_metadata) for block in blocks
        )
    assert sum(span.length for span in built.hot_metadata) < built.data_start // BLOCK

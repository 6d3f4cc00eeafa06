"""Several recordings as one, and the files of blocks."""

from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import ProfileError
from lazyfs.profile import merge as module
from lazyfs.profile.document import BLOCK_BYTES, BlockRun, FileRange, Profile
from lazyfs.profile.files import FilesOfBlocks, Placed
from lazyfs.profile.merge import merge

EMPTY = Profile("sha256:" + "ab" * 32, ("sha256:" + "01" * 32,) * 2, 1, (), ())


def _blocks(profile: Profile) -> list[tuple[int, int]]:
    spans = [[(run.layer, block) for block in range(run.first, run.end)] for run in profile.blocks]
    return list(chain.from_iterable(spans))


def _of(*blocks: int, runs: int = 1) -> Profile:
    files = tuple(FileRange(0, b"%d" % block, 0, 1) for block in blocks)
    return replace(EMPTY, runs=runs, blocks=tuple(BlockRun(0, b, 1) for b in blocks), files=files)


def test_what_all_read_comes_first_then_what_came_early() -> None:
    merged = merge([_of(9, 1, 5), _of(5, 7, 9), _of(8, 5)])
    assert _blocks(merged) == [(0, 5), (0, 9), (0, 8), (0, 1), (0, 7)]
    assert [int(file.path) for file in merged.files] == [5, 9, 8, 1, 7]
    assert merged.runs == 3


def test_a_merged_profile_weighs_as_much_as_its_recordings() -> None:
    assert _blocks(merge([_of(1, runs=3), _of(2, 3), _of(3, 2)])) == [(0, 1), (0, 2), (0, 3)]


def test_neighbours_become_one_run() -> None:
    assert merge([_of(1, 2), _of(5, 1, 2)]).blocks == (BlockRun(0, 1, 2), BlockRun(0, 5, 1))


@given(st.lists(st.lists(st.integers(0, 30), unique=True), min_size=1, max_size=4))
def test_nothing_is_lost_and_nothing_comes_twice(recordings: list[list[int]]) -> None:
    found = _blocks(merge([_of(*blocks) for blocks in recordings]))
    assert sorted(found) == sorted({(0, block) for blocks in recordings for block in blocks})


def test_what_two_starts_read_elsewhere_stays_in_one_piece_each() -> None:
    one = replace(EMPTY, blocks=(BlockRun(0, 0, 1000),))
    other = replace(EMPTY, blocks=(BlockRun(0, 900, 200), BlockRun(1, 5000, 1000)))
    assert merge([one, other]).blocks == (
        BlockRun(0, 900, 100),
        BlockRun(0, 0, 900),
        BlockRun(0, 1000, 100),
        BlockRun(1, 5000, 1000),
    )


def test_ranges_of_a_file_that_overlap_are_cut_where_uses_differ() -> None:
    one = replace(EMPTY, files=(FileRange(0, b"b", 0, 10), FileRange(0, b"a", 0, 10000)))
    other = replace(EMPTY, files=(FileRange(0, b"a", 5000, 10000), FileRange(1, b"a", 0, 1)))
    assert merge([one, other]).files == (
        FileRange(0, b"a", 5000, 5000),
        FileRange(0, b"b", 0, 10),
        FileRange(0, b"a", 0, 5000),
        FileRange(0, b"a", 10000, 5000),
        FileRange(1, b"a", 0, 1),
    )


def test_a_range_that_a_profile_names_twice_is_used_once() -> None:
    twice = replace(EMPTY, files=(FileRange(0, b"a", 0, 9), FileRange(0, b"a", 0, 9)))
    other = replace(EMPTY, runs=2, files=(FileRange(0, b"b", 0, 9),))
    assert [file.path for file in merge([twice, twice, other]).files] == [b"a", b"b"]
    assert [file.path for file in merge([twice, other]).files] == [b"b", b"a"]


def test_ranges_that_overlap_in_one_another_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PIECES", 1000)
    nested = replace(
        EMPTY, files=tuple(FileRange(0, b"a", 50 - size, 2 * size) for size in range(1, 50))
    )
    with pytest.raises(ProfileError, match="1000 pieces"):
        merge([nested, nested])


_SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), max_size=8)


@given(st.lists(st.tuples(st.integers(1, 3), _SPANS), min_size=2, max_size=4))
def test_more_uses_come_first_byte_by_byte(recorded: list[tuple[int, list[tuple[int, int]]]]):
    profiles = [
        replace(EMPTY, runs=runs, files=tuple(FileRange(0, b"a", *span) for span in spans))
        for runs, spans in recorded
    ]
    files = merge(profiles).files
    bytes_of = [
        {at for file in profile.files for at in range(file.offset, file.offset + file.length)}
        for profile in profiles
    ]
    found = [at for file in files for at in range(file.offset, file.offset + file.length)]
    assert sorted(found) == sorted(set().union(*bytes_of))
    uses = [
        sum(profile.runs for profile, ours in zip(profiles, bytes_of, strict=True) if at in ours)
        for at in found
    ]
    assert uses == sorted(uses, reverse=True)


def test_other_images_are_refused() -> None:
    with pytest.raises(ProfileError, match="different images"):
        merge([EMPTY, replace(EMPTY, image="sha256:" + "cd" * 32)])


def _file(name: bytes, offset: int, length: int, block: int, layer: int = 0) -> Placed:
    return Placed(FileRange(layer, name, offset, length), layer, block * BLOCK_BYTES, length)


def test_files_come_in_the_order_of_their_blocks_cut_to_what_was_read() -> None:
    found = FilesOfBlocks([BlockRun(0, 8, 2), BlockRun(1, 0, 1), BlockRun(0, 3, 2)])
    found.add([_file(b"a", 0, 3 * BLOCK_BYTES + 10, 2), _file(b"b", BLOCK_BYTES, 5000, 8)])
    found.add([_file(b"c", 0, 100, 0, layer=1), _file(b"d", 0, 100, 1, layer=1)])
    found.add([_file(b"e", 0, 1, 6), _file(b"f", 0, 1, 7), _file(b"g", 0, 1, 10)])
    assert found.ranges() == (
        FileRange(0, b"b", BLOCK_BYTES, 5000),
        FileRange(1, b"c", 0, 100),
        FileRange(0, b"a", BLOCK_BYTES, 2 * BLOCK_BYTES),
    )


def test_parts_of_a_file_that_follow_each_other_are_one() -> None:
    found = FilesOfBlocks([BlockRun(0, 4, 1), BlockRun(0, 5, 2)])
    found.add([_file(b"a", 0, 3 * BLOCK_BYTES, 4)])
    assert found.ranges() == (FileRange(0, b"a", 0, 3 * BLOCK_BYTES),)


def test_compressed_bytes_are_taken_as_a_whole() -> None:
    found = FilesOfBlocks([BlockRun(0, 1, 1)])
    found.add([Placed(FileRange(0, b"a", 4096, 100_000), 0, 0, 3 * BLOCK_BYTES)])
    assert found.ranges() == (FileRange(0, b"a", 4096, 100_000),)

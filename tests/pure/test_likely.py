"""Which chunks are guessed, and how many in vain at most."""

from hypothesis import given
from hypothesis import strategies as st

from lazyfs.layer.likely import (
    FILL_AHEAD,
    FORESEEN_BYTES,
    FREE_BYTES,
    MOST_PARTS,
    NEAR,
    WANTED_SHARE,
    Likely,
    Place,
)

LENGTH = 200_000
CHUNKS = 100


def layers(*chunks: int) -> Likely:
    likely = Likely()
    for number, count in enumerate(chunks):
        likely.add(number, count)
    return likely


def guesses(likely: Likely, most: int = CHUNKS) -> list[Place]:
    """What is guessed if nothing is wanted meanwhile."""
    found: list[Place] = []
    while len(found) < most and (place := likely.best()) is not None:
        likely.guessed(place, LENGTH)
        found.append(place)
    return found


def test_nothing_is_guessed_before_something_was_wanted():
    assert layers(CHUNKS).best() is None


def test_a_wanted_chunk_speaks_for_its_neighbours_the_nearest_first():
    likely = layers(CHUNKS)
    likely.wanted(Place(0, 50), LENGTH, here=False)
    assert [chunk for _, chunk in guesses(likely)] == [51, 49, 52, 48]


def test_where_several_were_wanted_guesses_reach_further():
    likely = layers(CHUNKS)
    for chunk in (50, 53, 56):
        likely.wanted(Place(0, chunk), LENGTH, here=False)
    found = {chunk for _, chunk in guesses(likely)}
    assert {51, 52, 54, 55, 57, 58} <= found
    assert found <= set(range(50 - NEAR, 56 + NEAR + 1))


def test_the_latest_come_first():
    likely = layers(CHUNKS, CHUNKS)
    likely.wanted(Place(0, 20), LENGTH, here=False)
    likely.wanted(Place(1, 70), LENGTH, here=False)
    assert guesses(likely, 4) == [Place(1, 71), Place(1, 69), Place(0, 21), Place(0, 19)]


def test_guesses_end_with_the_layer():
    likely = layers(1, 3)
    likely.wanted(Place(0, 0), LENGTH, here=False)
    likely.wanted(Place(1, 2), LENGTH, here=False)
    assert guesses(likely) == [Place(1, 1), Place(1, 0)]


def test_what_was_there_says_nothing_and_what_was_guessed_does():
    likely = layers(CHUNKS)
    assert not likely.wanted(Place(0, 50), LENGTH, here=True)
    assert likely.best() is None
    likely.guessed(Place(0, 60), LENGTH)
    assert likely.wanted(Place(0, 60), LENGTH, here=True)
    assert likely.best() == Place(0, 61)
    assert (likely.guessed_bytes, likely.hit_bytes, likely.waited_bytes) == (LENGTH, LENGTH, 0)


def test_metadata_is_guessed_once_some_of_it_was_waited_for():
    likely = layers(CHUNKS, CHUNKS)
    likely.metadata(1, range(40))
    likely.wanted(Place(1, 0), LENGTH, here=True)
    likely.wanted(Place(0, 80), LENGTH, here=False)
    assert {layer for layer, _ in guesses(likely)} == {0}
    likely.wanted(Place(1, 20), LENGTH, here=False)
    assert {chunk for _, chunk in guesses(likely)} >= set(range(1, 40)) - {20}


def test_metadata_is_guessed_in_order_and_without_what_is_there():
    likely = layers(CHUNKS)
    likely.metadata(0, range(40))
    likely.wanted(Place(0, 20), LENGTH, here=False)
    for chunk in (0, 1, 3):
        likely.pass_over(Place(0, chunk))
    found = [chunk for _, chunk in guesses(likely)]
    assert [chunk for chunk in found if chunk < 10] == [2, *range(4, 10)]


def test_what_is_passed_over_is_not_named_again():
    likely = layers(CHUNKS)
    likely.wanted(Place(0, 50), LENGTH, here=False)
    likely.pass_over(Place(0, 51))
    assert likely.best() == Place(0, 49)


def test_a_chunk_is_new_until_it_is_wanted():
    likely = layers(CHUNKS)
    place = Place(0, 7)
    likely.guessed(place, LENGTH)
    assert likely.is_new(place)
    likely.wanted(place, LENGTH, here=True)
    assert not likely.is_new(place)


def test_who_reads_all_in_any_order_is_guessed_for_without_end():
    likely = layers(1000)
    for chunk in range(0, 1000, 2):
        if likely.is_new(Place(0, chunk)):
            likely.wanted(Place(0, chunk), LENGTH, here=False)
            for place in guesses(likely, 1):
                likely.wanted(place, LENGTH, here=True)
        assert likely.affords(LENGTH)


@given(st.lists(st.integers(0, CHUNKS - 1), max_size=200), st.integers(1, 1 << 20))
def test_guesses_in_vain_are_bounded(wanted: list[int], length: int):
    likely = layers(CHUNKS)
    for chunk in wanted:
        if likely.is_new(Place(0, chunk)):
            likely.wanted(Place(0, chunk), length, here=False)
        while (place := likely.best()) is not None and likely.affords(length):
            likely.guessed(place, length)
        vain = likely.guessed_bytes - likely.hit_bytes
        assert vain <= FREE_BYTES + likely.hit_bytes + WANTED_SHARE * likely.waited_bytes


def test_what_is_foreseen_is_fetched_once_and_says_nothing_of_its_neighbours():
    likely = layers(CHUNKS)
    assert likely.foresee(Place(0, 50), LENGTH)
    assert not likely.foresee(Place(0, 50), LENGTH)
    assert likely.wanted(Place(0, 50), LENGTH, here=True)
    assert not likely.foresee(Place(0, 50), LENGTH)
    assert likely.best() is None


def test_what_is_foreseen_in_vain_is_limited():
    likely = layers(CHUNKS)
    length = FORESEEN_BYTES // 4
    foreseen = [chunk for chunk in range(10) if likely.foresee(Place(0, chunk), length)]
    assert foreseen == [0, 1, 2, 3]
    assert likely.wanted(Place(0, 2), length, here=False)
    assert likely.foresee(Place(0, 9), length)
    assert not likely.foresee(Place(0, 8), length)
    assert likely.affords(FREE_BYTES)


def test_all_metadata_are_guessed_in_order_though_none_was_waited_for():
    likely = layers(CHUNKS, CHUNKS)
    likely.metadata(1, range(3, 5))
    likely.metadata(0, range(7, 8))
    assert guesses(likely) == []
    likely.all_metadata()
    assert guesses(likely) == [(1, 3), (1, 4), (0, 7)]


def test_a_part_is_filled_up_as_far_as_it_is_wanted():
    likely = layers(CHUNKS)
    likely.fill(0, range(20, 60))
    ahead = [Place(0, chunk) for chunk in range(20, 20 + FILL_AHEAD)]
    assert guesses(likely) == ahead
    for place in ahead[:3]:
        likely.wanted(place, LENGTH, here=True)
    more = [chunk for _, chunk in guesses(likely)]
    assert set(range(20 + FILL_AHEAD, 23 + FILL_AHEAD)) <= set(more)
    assert max(more) < 23 + FILL_AHEAD


def test_nearest_neighbours_come_before_a_part_and_others_behind_it():
    likely = layers(CHUNKS)
    likely.fill(0, range(80, 82))
    likely.wanted(Place(0, 50), LENGTH, here=False)
    assert [chunk for _, chunk in guesses(likely)] == [51, 49, 80, 81, 52, 48]


def test_parts_are_filled_one_after_the_other_and_some_last():
    likely = layers(CHUNKS)
    likely.fill(0, range(60, 62), last=True)
    likely.fill(0, range(40, 42))
    likely.fill(0, range(20, 22))
    assert [chunk for _, chunk in guesses(likely)] == [40, 41, 20, 21, 60, 61]


def test_so_many_parts_are_remembered():
    likely = layers(2 * MOST_PARTS)
    for chunk in range(2 * MOST_PARTS):
        likely.fill(0, range(chunk, chunk + 1))
    assert len(guesses(likely, 2 * MOST_PARTS)) == MOST_PARTS
    likely.fill(0, range(MOST_PARTS, MOST_PARTS + 1))  # what is full makes room
    assert guesses(likely) == [(0, MOST_PARTS)]

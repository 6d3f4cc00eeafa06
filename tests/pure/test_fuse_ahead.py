"""Which listings are made before they are asked for."""

from hypothesis import given
from hypothesis import strategies as st

from lazyfs.fuse import ahead
from lazyfs.fuse.ahead import MAX_EXPECTED, MAX_MADE, Ahead, Wanted
from lazyfs.model import NodeId


def at(node: int, position: int = 0, *, with_files: bool = False) -> Wanted:
    return Wanted(NodeId(node), position, 4096, with_files)


def test_who_lists_one_directory_has_only_its_end_made():
    listings = Ahead()
    assert listings.take(at(1)) is None
    listings.expect(at(1), [at(1, 9), at(2), at(3)])
    assert listings.next() == at(1, 9)
    listings.keep(at(1, 9), b"")
    assert listings.next() is None
    assert listings.take(at(1, 9)) == b""
    assert listings.next() is None


def test_who_goes_into_what_he_listed_has_the_next_ones_made_depth_first():
    listings = Ahead()
    listings.take(at(1))
    listings.expect(at(1), [at(1, 9), at(2), at(3)])
    assert listings.next() == at(1, 9)
    assert listings.take(at(1, 9)) is None
    assert listings.take(at(2)) is None
    listings.expect(at(2), [at(2, 9), at(20)])
    for wanted in (at(2, 9), at(20)):
        assert listings.next() == wanted
        listings.keep(wanted, b"%d" % wanted.directory)
    listings.expect(at(20), [at(20, 9)])
    assert [listings.next() for _ in range(3)] == [at(20, 9), at(3), None]
    assert listings.take(at(2, 9)) == b"2"
    assert listings.take(at(20)) == b"20"
    assert listings.take(at(20)) is None


def test_the_rest_of_a_directory_comes_before_what_is_in_it():
    listings = Ahead()
    listings.expect(at(1), [at(1, 5), at(2)])
    assert listings.take(at(1, 5)) is None
    listings.expect(at(1, 5), [at(1, 9), at(3)])
    listings.take(at(1, 9))
    listings.take(at(2))
    assert listings.next() == at(3)


def test_another_size_or_kind_is_another_listing():
    listings = Ahead()
    listings.expect(at(1), [at(1, 9)])
    assert listings.next() == at(1, 9)
    listings.keep(at(1, 9), b"x")
    assert listings.take(at(1, 9, with_files=True)) is None
    assert listings.take(at(1, 9)) is None  # what was made was for a walk that is over


def test_what_is_never_asked_for_makes_room():
    listings = Ahead()
    listings.expect(at(1), [at(node, 9) for node in range(2 * MAX_MADE)])
    made = []
    while wanted := listings.next():
        listings.keep(wanted, b"x")
        made.append(wanted)
    assert len(made) == MAX_MADE
    assert listings.take(at(MAX_MADE + 1, 9)) is None
    assert listings.next() == at(MAX_MADE, 9)
    assert listings.take(made[0]) is None


STEPS = st.lists(
    st.tuples(st.sampled_from(["take", "expect", "next"]), st.integers(0, 9), st.integers(0, 3))
)


@given(STEPS)
def test_only_what_was_asked_for_is_given_and_little_is_kept(steps):
    listings = Ahead()
    for step, node, position in steps:
        wanted = at(node, position)
        if step == "take":
            assert listings.take(wanted) in (None, repr(wanted).encode())
        elif step == "expect":
            listings.expect(wanted, [wanted, at(node + 1), at(node + 2)])
        elif (made := listings.next()) is not None:
            listings.keep(made, repr(made).encode())
        assert len(listings._made) <= MAX_MADE
        assert sum(len(left) for _, left in listings._left) <= MAX_EXPECTED


def test_what_is_far_away_is_forgotten(monkeypatch):
    assert MAX_EXPECTED >= 1000
    monkeypatch.setattr(ahead, "MAX_EXPECTED", 3)
    listings = Ahead()
    listings.expect(at(0), [at(node, 9) for node in range(5)])
    listings.take(at(0, 9))
    listings.expect(at(0), [at(10, 9), at(11, 9)])
    assert [listings.next() for _ in range(3)] == [at(10, 9), at(11, 9), None]

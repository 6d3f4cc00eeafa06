"""Who is given attributes with a listing."""

from lazyfs.fuse.curious import MAX_THREADS, Curious
from lazyfs.model import NodeId

HERE, THERE = NodeId(10), NodeId(11)


def test_names_are_enough_until_one_is_looked_at():
    curious = Curious()
    assert not curious.lists(1, HERE)
    assert not curious.lists(1, THERE)
    curious.looks_up(1, HERE)  # not what it listed last
    assert not curious.lists(1, HERE)
    curious.looks_up(1, HERE)
    assert curious.lists(1, THERE)
    assert curious.lists(1, HERE)  # from now on
    assert not curious.lists(2, HERE)


def test_a_lookup_alone_says_nothing():
    curious = Curious()
    curious.looks_up(1, HERE)
    assert not curious.lists(1, HERE)


def test_only_so_many_are_remembered():
    curious = Curious()
    for thread in range(MAX_THREADS + 1):
        curious.lists(thread, HERE)
        curious.looks_up(thread, HERE)
    assert curious.lists(1, HERE)
    assert not curious.lists(0, HERE)

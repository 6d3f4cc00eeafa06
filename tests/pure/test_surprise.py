"""Whether readers want what the background brings."""

from hypothesis import given
from hypothesis import strategies as st

from lazyfs.layer.surprise import MEMORY_S, MOST_UNUSED, Surprise


def surprised(count: int, surprise: Surprise, now_s: float = 0.0) -> float:
    """Some waits of a second each; when the last one ends."""
    for _ in range(count):
        surprise.begins(now_s)
        now_s += 1
        surprise.ends(now_s)
    return now_s


def test_a_few_in_a_row_are_too_many_and_one_is_not():
    surprise = Surprise()
    now_s = surprised(1, surprise)
    assert surprise.calm_s(now_s) == 0
    assert surprise.calm_s(surprised(4, surprise, now_s)) > 0


def test_who_wants_what_was_brought_is_not_surprised():
    surprise = Surprise()
    now_s = 0.0
    for number in range(100):
        surprise.brings([number])
        now_s = surprised(1, surprise, now_s)
        surprise.wanted([number, "something else"])
        assert not surprise.unused
    surprise.wanted([99])  # again: it counted already
    assert surprise.calm_s(now_s) == 0


def test_it_is_over_when_readers_are_content():
    surprise = Surprise()
    now_s = surprised(50, surprise)
    calm_s = surprise.calm_s(now_s)
    assert 0 < calm_s < MEMORY_S
    assert surprise.calm_s(now_s + 0.9 * calm_s) > 0
    assert surprise.calm_s(now_s + 1.1 * calm_s) == 0


def test_it_is_not_over_while_somebody_waits():
    surprise = Surprise()
    now_s = surprised(4, surprise)
    surprise.begins(now_s)
    assert surprise.calm_s(now_s + 100) > 0
    surprise.ends(now_s + 100)
    assert surprise.calm_s(now_s + 100 + MEMORY_S) == 0


@given(st.lists(st.integers(0, 2000), max_size=1000))
def test_no_more_is_remembered_than_the_latest(keys: list[int]):
    surprise = Surprise()
    surprise.brings(keys)
    latest = list(dict.fromkeys(keys))[-MOST_UNUSED:]
    assert list(surprise.unused) == latest

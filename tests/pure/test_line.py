"""What is made of how fast bytes come."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.layer.line import (
    LEAST_AHEAD_BYTES,
    LEAST_RUN_BYTES,
    MOST_AHEAD_BYTES,
    MOST_GAP_BYTES,
    MOST_RUN_BYTES,
    UNKNOWN_BYTES,
    WAITS,
    Line,
)

PIECE = 16 << 10


def carry(line: Line, *, seconds: float, length: int, rtt_s: float, start_s: float = 0.0) -> float:
    """One answer of ``length`` bytes that takes ``seconds`` behind its first byte; when it ends."""
    line.asked(length)
    now = start_s + rtt_s
    line.began(now, rtt_s, PIECE)
    pieces = length // PIECE - 1
    for number in range(pieces):
        line.received(now + seconds * (number + 1) / pieces, PIECE)
    line.ended(now + seconds)
    return now + seconds


def measured(mbit: float, rtt_s: float) -> Line:
    line = Line()
    now = 0.0
    for _ in range(20):
        length = 64 * PIECE
        now = carry(line, seconds=length * 8 / mbit / 1e6, length=length, rtt_s=rtt_s, start_s=now)
    return line


@pytest.mark.parametrize("mbit", [10, 100, 1000])
@pytest.mark.parametrize("rtt_s", [0.0005, 0.005, 0.05])
def test_both_figures_are_found(mbit: int, rtt_s: float):
    line = measured(mbit, rtt_s)
    assert line.bytes_per_s == pytest.approx(mbit * 1e6 / 8, rel=0.05)
    assert line.round_trip_s == pytest.approx(rtt_s, rel=0.01)
    assert line.under_way == 0


def test_several_streams_share_one_line():
    line = Line()
    line.asked(4 << 20)
    for number in range(4):
        line.began(1.0 + number / 1000, 0.1, PIECE)
    for number in range(100):
        line.received(1.01 + number * 0.01, PIECE)
    assert line.bytes_per_s == pytest.approx(PIECE / 0.01, rel=0.1)


def test_short_answers_that_come_at_once_say_nothing_of_the_rate():
    line = Line()
    line.asked(PIECE)
    line.began(1.0, 0.1, PIECE)
    line.ended(1.0)
    assert line.bytes_per_s is None
    assert line.round_trip_s == 0.1
    assert line.background_bytes == UNKNOWN_BYTES
    assert line.gap_bytes == 0


@pytest.mark.parametrize("waited_s", [0.0, 0.0003])
def test_what_was_in_memory_says_nothing_of_the_round_trip(waited_s):
    line = measured(100, 0.05)
    room = line.guess_bytes
    line.asked(PIECE)
    line.began(1000.0, waited_s, PIECE)
    line.ended(1000.0)
    assert line.guess_bytes == room > 0
    assert line.round_trip_s == pytest.approx(0.05)


def test_a_queue_is_no_round_trip_but_a_longer_line_is_seen_in_the_end():
    line = measured(100, 0.01)
    for _ in range(WAITS - 1):
        carry(line, seconds=0.1, length=64 * PIECE, rtt_s=1.0)
    assert line.round_trip_s == pytest.approx(0.01)
    carry(line, seconds=0.1, length=64 * PIECE, rtt_s=1.0)
    assert line.round_trip_s == 1.0


def test_a_thin_line_is_kept_free_and_a_long_one_full():
    thin, long = measured(10, 0.005), measured(1000, 0.05)
    assert thin.run_bytes * 8 / 10e6 <= 0.3
    assert thin.background_bytes * 8 / 10e6 <= 0.3
    assert long.background_bytes >= 2 * 1000e6 / 8 * 0.05
    assert thin.gap_bytes < 10_000 < long.gap_bytes
    assert thin.along_bytes == pytest.approx(10e6 / 8 * 0.007, rel=0.05)
    assert long.along_bytes > 1000e6 / 8 * 0.05
    assert Line().along_bytes == UNKNOWN_BYTES
    assert thin.ahead_bytes == LEAST_AHEAD_BYTES
    assert long.ahead_bytes == MOST_AHEAD_BYTES


@given(st.floats(1e-9, 1e12), st.floats(0, 1e6))
def test_every_decision_is_bounded(rate: float, rtt_s: float):
    line = Line(bytes_per_s=rate)
    line.asked(1)
    line.began(rtt_s, rtt_s, 1)
    line.ended(rtt_s)
    assert LEAST_RUN_BYTES <= line.run_bytes <= MOST_RUN_BYTES
    assert 0 <= line.gap_bytes <= MOST_GAP_BYTES
    assert LEAST_AHEAD_BYTES <= line.ahead_bytes <= MOST_AHEAD_BYTES
    assert line.has_room(1 << 40), "an idle line always has"


def test_room_is_what_is_not_under_way():
    line = measured(10, 0.005)
    room = line.background_bytes
    line.asked(room - 1000)
    assert line.has_room(1000)
    assert not line.has_room(1001)
    line.given_up(500)
    assert line.has_room(1500)


def test_lines_are_long_where_a_round_trip_carries_a_chunk():
    lines = {(mbit, rtt_s) for mbit in (10, 100, 1000) for rtt_s in (0.0005, 0.005, 0.05)}
    assert {line for line in lines if measured(*line).is_long} == {(100, 0.05), (1000, 0.05)}
    assert not Line().is_long


def test_what_will_be_wanted_is_asked_for_in_portions_on_long_lines_only():
    thin, long = measured(10, 0.05), measured(100, 0.05)
    assert Line().may_foresee(1 << 30)
    assert thin.may_foresee(1 << 30)
    assert long.may_foresee(1 << 30)  # who never could would never come
    long.asked(PIECE)
    assert long.may_foresee(long.guess_bytes)
    assert not long.may_foresee(long.guess_bytes, others=long.guess_bytes)
    assert not long.may_foresee(1 << 30)

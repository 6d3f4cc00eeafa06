"""The log stays readable while everything fails."""

from lazyfs.failurelog import BURST_LINES, MAX_REMEMBERED, QUIET_S, FailureLog


def test_the_same_failure_is_logged_once_until_it_was_quiet_long_enough():
    log = FailureLog()
    assert log.admit("a", 0.0) == 0
    assert [log.admit("a", 0.001 * n) for n in range(1000)] == [None] * 1000
    assert log.admit("b", 1.0) == 0
    assert log.admit("a", QUIET_S) == 1000
    assert log.admit("a", QUIET_S + 1) is None


def test_a_flood_of_different_failures_is_cut():
    log = FailureLog()
    admitted = [log.admit(str(n), 1.0) for n in range(BURST_LINES * 3)]
    assert admitted == [0] * BURST_LINES + [None] * (BURST_LINES * 2)
    assert log.admit("new", 1.0 + QUIET_S) == 0


def test_what_was_cut_is_counted_when_it_is_admitted():
    log = FailureLog()
    for n in range(BURST_LINES):
        log.admit(str(n), 0.0)
    assert log.admit("late", 1.0) is None
    assert log.admit("late", QUIET_S) == 1


def test_memory_is_bounded():
    log = FailureLog()
    for n in range(MAX_REMEMBERED * 2):
        log.admit(str(n), 0.0)
    assert len(log._seen) == MAX_REMEMBERED

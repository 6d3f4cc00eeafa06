"""When a daemon is started again, and when no more."""

from lazyfs.mount.restarts import (
    BACKOFF_S,
    HASTE_DEATHS,
    HASTE_PAUSE_S,
    HASTE_WINDOW_S,
    MAX_DEATHS,
    WINDOW_S,
    Restarts,
)


def test_a_daemon_that_served_is_replaced_at_once():
    restarts = Restarts()
    for day in range(1000):
        assert restarts.pause_s(served=True, now_s=day * 86400.0) == 0


def test_daemons_that_do_not_come_to_serve_are_given_up():
    restarts = Restarts()
    assert restarts.pause_s(served=True, now_s=0) == 0
    pauses = [restarts.pause_s(served=False, now_s=1) for _ in BACKOFF_S]
    assert pauses == list(BACKOFF_S)
    assert restarts.pause_s(served=False, now_s=2) is None


def test_one_that_serves_lets_failures_be_forgotten():
    restarts = Restarts()
    for _ in range(3):
        for pause in BACKOFF_S[:-1]:
            assert restarts.pause_s(served=False, now_s=1000) == pause
        assert restarts.pause_s(served=True, now_s=1000) is not None


def test_haste_costs_a_pause():
    restarts = Restarts()
    for _ in range(HASTE_DEATHS):
        assert restarts.pause_s(served=True, now_s=0) == 0
    assert restarts.pause_s(served=True, now_s=0) == HASTE_PAUSE_S
    assert restarts.pause_s(served=True, now_s=HASTE_WINDOW_S) == 0


def test_too_many_deaths_are_the_end():
    restarts = Restarts()
    for _ in range(MAX_DEATHS):
        assert restarts.pause_s(served=True, now_s=0) is not None
    assert restarts.pause_s(served=True, now_s=WINDOW_S - 1) is None

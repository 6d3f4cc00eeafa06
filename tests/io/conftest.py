"""What tests in virtual time share."""

import pytest

from tests.support.tick_registry import threads_at_once


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be done by a worker thread is done at once: no clock waits for a thread."""
    threads_at_once(monkeypatch)

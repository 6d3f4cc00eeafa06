"""How long each step of a request may take, from the one time that a user sets.

A request that hangs must leave time for another one, to the same host or the next. So no step may
take all of the time.
"""

from dataclasses import dataclass

INFINITE = float("inf")
PATIENT_CONNECT_S = 30.0
PATIENT_ANSWER_S = 120.0
PATIENT_STALL_S = 60.0
"""Where the user waits for ever: when a connection is given up and another one made."""
SLOWEST_BYTES_PER_S = 8 << 10
"""A peer that is slower than this on the whole is treated as one that does not answer."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Limits in seconds."""

    total_s: float
    """All tries of one operation, or of a piece of a long one; infinite if the user waits for ever.

    Bytes that come are not counted: how slowly they may come is another limit.
    """
    connect_s: float
    """Looking the name up, TCP and TLS."""
    first_byte_s: float
    """From the request to its answer."""
    stall_s: float
    """Within an answer."""
    upload_s: float
    """From the end of what was sent to its answer: the registry checks and moves it meanwhile."""


def deadlines(timeout_s: float, dial_timeout_s: float | None = None) -> Deadlines:
    """Limits for ``timeout_s`` seconds in all; 0: for ever."""
    if not timeout_s:
        connect_s = PATIENT_CONNECT_S if dial_timeout_s is None else dial_timeout_s
        return Deadlines(INFINITE, connect_s, PATIENT_ANSWER_S, PATIENT_STALL_S, INFINITE)
    connect_s = timeout_s / 3
    if dial_timeout_s is not None:
        connect_s = min(dial_timeout_s, timeout_s)
    return Deadlines(timeout_s, connect_s, timeout_s / 2, timeout_s / 3, 4 * timeout_s)

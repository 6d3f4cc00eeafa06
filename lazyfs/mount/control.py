"""Asking a daemon: a socket in its runtime folder gives one JSON document per connection.

The asking side lives here, without trio: it runs in short commands.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from lazyfs.errors import MountError

ANSWER_WITHIN_S = 2.0
MAX_ANSWER_BYTES = 16 << 20


@contextlib.contextmanager
def short_address(path: Path) -> Iterator[str]:
    """An address for the socket ``path`` that fits the 108 bytes of ``sockaddr_un``."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def ask(
    path: Path, within_s: float = ANSWER_WITHIN_S, question: Mapping[str, object] | None = None
) -> dict[str, object]:
    """The document that the daemon behind the socket ``path`` gives.

    Args:
        path: of the socket.
        within_s: how long to wait for all of it.
        question: what is asked for; None: the status.

    Raises:
        MountError: no such daemon, no answer in time, or not an answer.
    """
    deadline = time.monotonic() + within_s
    answer = bytearray()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(within_s)
            with short_address(path) as address:
                connection.connect(address)
            if question is not None:
                connection.sendall(json.dumps(question).encode() + b"\n")
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(1 << 16):
                answer += piece
                if len(answer) > MAX_ANSWER_BYTES:
                    raise MountError("the daemon's answer has no end")
                connection.settimeout(max(0.001, deadline - time.monotonic()))
        document = json.loads(answer)
    except TimeoutError as error:
        raise MountError(f"the daemon did not answer within {within_s:g} s") from error
    except (OSError, ValueError) as error:
        raise MountError(f"the daemon does not answer: {error}") from error
    if not isinstance(document, dict):
        raise MountError("the daemon's answer is not a status document")
    return document

"""The daemon's side of its control socket: one question, one JSON document, for each connection.

A question is a JSON object on one line, ``{"QUESTION": "what of"}``, or nothing at all, which asks
for the status.
"""

import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Mapping

import trio

QUESTION_WITHIN_S = 0.5
"""Who says nothing for so long wants the status."""

MAX_QUESTION_BYTES = 64 << 10

ANSWER_WITHIN_S = 5.0
"""How long a process that asked may take to read the answer."""

log = logging.getLogger(__name__)

Document = dict[str, object]


async def answer_all(
    listener: trio.SocketListener,
    status: Callable[[], Awaitable[Document]],
    answers: Mapping[str, Callable[[str], Awaitable[Document]]],
) -> None:
    """Answer everybody who connects, until cancelled.

    Args:
        listener: where they connect.
        status: the answer to no question, or to one that is not known.
        answers: what answers a question, by its name.
    """

    async def answer(stream: trio.SocketStream) -> None:
        try:
            question, argument = await _asked(stream)
            known = answers.get(question)
            document = await (status() if known is None else known(argument))
            text = json.dumps(document, default=str)
        except trio.BrokenResourceError:
            return
        except Exception as error:  # a bug in a figure must not end the mount
            log.exception("the status could not be made")
            text = json.dumps({"problem": f"the status could not be made: {error!r}"})
        with contextlib.suppress(trio.BrokenResourceError), trio.move_on_after(ANSWER_WITHIN_S):
            await stream.send_all(text.encode())

    await trio.serve_listeners(answer, [listener])


async def _asked(stream: trio.SocketStream) -> tuple[str, str]:
    """The name of a question, and what it is about; two empty ones: the status is wanted."""
    question = bytearray()
    with trio.move_on_after(QUESTION_WITHIN_S):
        while b"\n" not in question and len(question) < MAX_QUESTION_BYTES:
            data = await stream.receive_some()
            if not data:
                break
            question += data
    try:
        for name, argument in json.loads(question or b"{}").items():
            if isinstance(argument, str):
                return name, argument
    except (ValueError, AttributeError):
        pass
    return "", ""

"""Log records as lines."""

import json
import logging
import sys

from hypothesis import given
from hypothesis import strategies as st

from lazyfs.errors import DigestMismatchError
from lazyfs.layer.failures import failure_of
from lazyfs.mount.logs import JsonFormatter, LogChoice
from lazyfs.mount.service import PRIORITIES, log_to_journal


def record(message: str, level=logging.ERROR, **extra) -> logging.LogRecord:
    logger = logging.getLogger("lazyfs.test")
    return logger.makeRecord("lazyfs.test", level, "file", 1, message, (), None, extra=extra)


def test_fields_of_a_failure_and_nothing_else():
    error = DigestMismatchError.of_digests("chunk", "sha512:aa", "sha512:bb")
    failure = failure_of("img layer 2", "chunk 7", error, "registry.test")
    made = record("broken", event="chunk_failed", secret="hunter2", **failure.fields())
    made.created = 1_700_000_000.25
    document = json.loads(JsonFormatter({"image": "img"}).format(made))
    assert document == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "error",
        "logger": "lazyfs.test",
        "message": "broken",
        "image": "img",
        "event": "chunk_failed",
        "layer": "img layer 2",
        "chunk": "chunk 7",
        "host": "registry.test",
        "cause": "verification",
        "expected": "sha512:aa",
        "actual": "sha512:bb",
    }


@given(st.text())
def test_any_message_is_one_line_of_json(message: str):
    line = JsonFormatter({}).format(record(message))
    assert "\n" not in line
    assert json.loads(line)["message"] == message


def test_a_traceback_stays_on_the_line():
    try:
        raise ZeroDivisionError("a bug")
    except ZeroDivisionError:
        made = record("oh")
        made.exc_info = sys.exc_info()
    line = JsonFormatter({}).format(made)
    assert "\n" not in line
    assert "ZeroDivisionError: a bug" in json.loads(line)["exception"]


def test_the_journal_gets_priorities_before_either_form():
    handler = logging.StreamHandler()
    root = logging.getLogger()
    others, root.handlers = root.handlers, [handler]
    try:
        for form in (JsonFormatter({}), logging.Formatter("%(message)s")):
            handler.setFormatter(form)
            log_to_journal()
            line = handler.format(record("a\nb", logging.WARNING))
            assert line.startswith(f"<{PRIORITIES[logging.WARNING]}>")
            if isinstance(form, JsonFormatter):
                assert json.loads(line[3:])["message"] == "a\nb"
            else:
                assert line.splitlines() == ["<4>lazyfs.test: a", "<4>b"]
    finally:
        root.handlers = others


def test_words_of_the_command_line():
    assert LogChoice().arguments() == ["--log-format=text"]
    choice = LogChoice("json", "error")
    assert choice.arguments() == ["--log-format=json", "--log-level=error"]
    assert choice.number(logging.INFO) == logging.ERROR
    assert LogChoice().number(logging.INFO) == logging.INFO

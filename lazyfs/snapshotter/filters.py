"""The filters of containerd's lists: ``labels."a/b"==c,parent=="d"``.

Grammar: package ``filters`` of containerd. Selectors are joined by commas and all must hold; of
several filters one must.
"""

import json
import re
from collections.abc import Callable, Sequence

from lazyfs.snapshotter.errors import InvalidRequestError
from lazyfs.snapshotter.model import Snapshot

MAX_FILTER_CHARACTERS = 8192

_QUOTED = r'"(?:[^"\\]|\\.)*"'
_FIELD = rf"(?:{_QUOTED}|[A-Za-z][A-Za-z0-9_]*)"
_SELECTOR = re.compile(
    rf"(?P<path>{_FIELD}(?:\.{_FIELD})*)(?:(?P<operator>==|!=|~=)(?P<value>{_QUOTED}|[^\s,]+))?"
)
_PART = re.compile(_FIELD)

Filter = Callable[[Snapshot], bool]


def matcher(filters: Sequence[str]) -> Filter:
    """Whether a snapshot passes one of ``filters``; every one does if there are none.

    Raises:
        InvalidRequestError: one is not a filter.
    """
    parsed = [_parse(text) for text in filters]
    if not parsed:
        return lambda _: True
    return lambda snapshot: any(one(snapshot) for one in parsed)


def _parse(text: str) -> Filter:
    if len(text) > MAX_FILTER_CHARACTERS:
        raise InvalidRequestError("a filter is too long")
    selectors: list[Filter] = []
    position = 0
    while position < len(text):
        found = _SELECTOR.match(text, position)
        if found is None or (found.end() < len(text) and text[found.end()] != ","):
            raise InvalidRequestError(f"not a filter: {text[:200]!r}")
        selectors.append(_selector(found))
        position = found.end() + 1
    return lambda snapshot: all(selector(snapshot) for selector in selectors)


def _selector(found: "re.Match[str]") -> Filter:
    path = tuple(_unquote(part) for part in _PART.findall(found["path"]))
    operator, wanted = found["operator"], _unquote(found["value"] or "")
    if operator is None:
        return lambda snapshot: _field(snapshot, path) is not None
    if operator == "==":
        return lambda snapshot: _field(snapshot, path) == wanted
    if operator == "!=":
        return lambda snapshot: _field(snapshot, path) != wanted
    try:
        pattern = re.compile(wanted)
    except re.error as error:
        raise InvalidRequestError(f"not a pattern: {wanted[:200]!r}: {error}") from error
    return lambda snapshot: pattern.search(_field(snapshot, path) or "") is not None


def _unquote(text: str) -> str:
    if not text.startswith('"'):
        return text
    try:
        return str(json.loads(text))
    except ValueError as error:
        raise InvalidRequestError(f"not a quoted word: {text[:200]}") from error


def _field(snapshot: Snapshot, path: Sequence[str]) -> str | None:
    """A field by its path; None if it is not there."""
    match path:
        case ["name"]:
            return snapshot.name
        case ["parent"]:
            return snapshot.parent
        case ["kind"]:
            return snapshot.kind.value
        case ["labels", *rest]:
            return snapshot.labels.get(".".join(rest))
    return None

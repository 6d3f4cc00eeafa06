"""JSON from strangers: parsed within limits, read by kind, written the same way every time."""

import json
import math
from collections.abc import Mapping
from typing import NoReturn, TypeAlias

from registry.errors import ContentError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
JsonObject: TypeAlias = dict[str, Json]

SIZE_LIMIT = (1 << 63) - 1
"""The image specification gives sizes as int64."""


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"number out of range: {text[:40]}")
    return value


def parse_json(raw: bytes, what: str, limit_bytes: int) -> Json:
    """The value that ``raw`` holds; ``what`` names it in messages.

    Raises:
        ContentError: too long, not UTF-8, not JSON, or nested too deeply.
    """
    if len(raw) > limit_bytes:
        raise ContentError(f"{what}: {len(raw)} bytes pass the limit of {limit_bytes}")
    try:
        text = raw.decode("utf-8")
        value: Json = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        if "\\u" in text:
            # Half a surrogate pair can be escaped in JSON but never be printed or sent again.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise ContentError(f"{what}: not JSON: {str(error)[:120]}") from error
    return value


def parse_object(raw: bytes, what: str, limit_bytes: int) -> JsonObject:
    """As ``parse_json``, for a document that must be an object.

    Raises:
        ContentError: not a JSON object within the limits.
    """
    return as_object(parse_json(raw, what, limit_bytes), what)


def encode_json(value: Json) -> bytes:
    """Compact UTF-8 JSON; the order of keys is that of the dictionaries."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def as_object(value: Json, what: str) -> JsonObject:
    """``value`` if it is an object.

    Raises:
        ContentError: another kind.
    """
    if not isinstance(value, dict):
        raise ContentError(f"{what}: not a JSON object")
    return value


def take_string(document: JsonObject, key: str, what: str) -> str:
    """Remove and return a string; empty when absent or null.

    Raises:
        ContentError: another kind.
    """
    value = document.pop(key, None)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ContentError(f"{what}: {key} is not a string")
    return value


def take_size(document: JsonObject, key: str, what: str) -> int:
    """Remove and return a number of bytes, which must be there.

    Raises:
        ContentError: absent, another kind, negative or beyond int64.
    """
    value = document.pop(key, None)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= SIZE_LIMIT:
        raise ContentError(f"{what}: {key} is not a size in bytes")
    return value


def take_list(document: JsonObject, key: str, what: str, limit: int) -> list[Json]:
    """Remove and return a list of at most ``limit`` items; empty when absent or null.

    Raises:
        ContentError: another kind, or too many.
    """
    value = document.pop(key, None)
    if value is None:
        return []
    if not isinstance(value, list):
        raise ContentError(f"{what}: {key} is not a list")
    if len(value) > limit:
        raise ContentError(f"{what}: {len(value)} {key} pass the limit of {limit}")
    return value


def take_strings(document: JsonObject, key: str, what: str, limit: int) -> tuple[str, ...]:
    """Remove and return a list of strings; empty when absent or null.

    Raises:
        ContentError: another kind, or too many.
    """
    strings: list[str] = []
    for item in take_list(document, key, what, limit):
        if not isinstance(item, str):
            raise ContentError(f"{what}: {key} holds something else than strings")
        strings.append(item)
    return tuple(strings)


def take_string_map(document: JsonObject, key: str, what: str) -> dict[str, str]:
    """Remove and return an object of strings; empty when absent or null.

    Raises:
        ContentError: another kind.
    """
    value = document.pop(key, None)
    if value is None:
        return {}
    strings: dict[str, str] = {}
    for name, item in as_object(value, f"{what}: {key}").items():
        if not isinstance(item, str):
            raise ContentError(f"{what}: {key} holds something else than strings")
        strings[name] = item
    return strings


def sorted_map(strings: Mapping[str, str]) -> JsonObject:
    """``strings`` as JSON with sorted keys, as Go writes a map."""
    return {key: strings[key] for key in sorted(strings)}

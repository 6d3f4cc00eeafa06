"""What a registry asks for with 401, and what its token service answers.

``WWW-Authenticate`` is RFC 9110, 11.6.1; tokens are Docker's "Token Authentication Specification".
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from registry.errors import ContentError
from registry.jsondoc import parse_object, take_string

HEADER_LIMIT = 16 << 10
TOKEN_REPLY_LIMIT_BYTES = 256 << 10
DEFAULT_LIFETIME_S = 60.0
LONGEST_LIFETIME_S = 24 * 3600.0

_ITEM = re.compile(
    r"""[\s,]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)"""
    r"""(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([!#$%&'*+.^_`|~0-9A-Za-z/:-]+)))?""",
    re.ASCII,
)
_VISIBLE = re.compile(r"[!-~]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to prove who we are."""

    scheme: str
    """Lower case: ``basic``, ``bearer``."""
    parameters: Mapping[str, str] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token."""

    value: str = field(repr=False)
    lifetime_s: float


def parse_challenges(headers: Iterable[str]) -> tuple[Challenge, ...]:
    """The challenges of all ``WWW-Authenticate`` headers; what cannot be read is passed over."""
    challenges: list[Challenge] = []
    for header in headers:
        text = header[:HEADER_LIMIT]
        parameters: dict[str, str] | None = None
        position = 0
        while match := _ITEM.match(text, position):
            position = match.end()
            name, quoted, plain = match.groups()
            if quoted is None and plain is None:
                parameters = {}
                challenges.append(Challenge(name.lower(), parameters))
            elif parameters is not None:
                value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain
                parameters.setdefault(name.lower(), value)
    return tuple(challenges)


def decode_token(raw: bytes, what: str) -> Token:
    """Read a token service's answer.

    Raises:
        ContentError: it holds no token that can be sent.
    """
    document = parse_object(raw, what, TOKEN_REPLY_LIMIT_BYTES)
    lifetime = document.pop("expires_in", None)
    value = take_string(document, "token", what) or take_string(document, "access_token", what)
    if not _VISIBLE.fullmatch(value):
        raise ContentError(f"{what}: the answer holds no token")
    if not isinstance(lifetime, int | float) or lifetime <= 0:
        lifetime = DEFAULT_LIFETIME_S
    return Token(value, min(max(float(lifetime), DEFAULT_LIFETIME_S), LONGEST_LIFETIME_S))


def merge_scopes(ours: Iterable[str], asked: str) -> tuple[str, ...]:
    """Our scopes, and those of a challenge that speak of something else.

    A scope is ``TYPE:NAME:ACTIONS``; NAME may hold colons.
    """
    scopes = tuple(ours)
    named = {scope.rpartition(":")[0] for scope in scopes}
    others = (scope for scope in asked.split()[:16] if scope.rpartition(":")[0] not in named)
    return (*scopes, *others)

"""A registry's refusals as errors (distribution-spec, "Error Codes")."""

from registry.errors import (
    ContentError,
    DeniedError,
    NotFoundError,
    ResponseError,
    TooManyRequestsError,
)
from registry.jsondoc import JsonObject, as_object, parse_object, take_list, take_string

REPLY_LIMIT_BYTES = 64 << 10
_TEXT_LIMIT = 200


def refusal(
    status: int, body: bytes, what: str, retry_after_s: float | None = None
) -> ResponseError:
    """The error for an answer; ``what`` names host, repository and what was asked for."""
    code, message = _decode(body)
    detail = f": {code}" if code else ""
    detail += f": {message}" if message else ""
    if status in (401, 403):
        hint = "not allowed; is a login needed" if status == 401 else "not allowed"
        return DeniedError(f"{what}: {hint} ({status}{detail})", status=status, code=code)
    if status == 404:
        return NotFoundError(f"{what}: not found ({status}{detail})", status=status, code=code)
    if status == 429:
        return TooManyRequestsError(
            f"{what}: too many requests ({status}{detail})",
            status=status,
            code=code,
            retry_after_s=retry_after_s,
        )
    return ResponseError(
        f"{what}: refused ({status}{detail})",
        status=status,
        code=code,
        retry_after_s=retry_after_s,
    )


def _decode(body: bytes) -> tuple[str, str]:
    """Code and message of the first error in a JSON answer; empty for anything else."""
    try:
        errors = take_list(parse_object(body, "reply", REPLY_LIMIT_BYTES), "errors", "reply", 100)
        first: JsonObject = dict(as_object(errors[0], "reply")) if errors else {}
        code, message = take_string(first, "code", "reply"), take_string(first, "message", "reply")
    except ContentError:
        return "", ""
    return _printable(code), _printable(message)


def _printable(text: str) -> str:
    """``text`` as one short line without control characters."""
    return "".join(c if c.isprintable() else " " for c in text[:_TEXT_LIMIT]).strip()

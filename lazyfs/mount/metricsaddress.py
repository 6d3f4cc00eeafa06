"""Where metrics are to be served: ``unix:PATH``, ``HOST:PORT`` or ``PORT`` of this machine."""

import re
from pathlib import Path
from typing import NamedTuple

LOOPBACK = "127.0.0.1"
MAX_PORT = 65535

_TCP = re.compile(
    r"(?:(?:(?P<host>[^\[\]:@/\s]+)|\[(?P<six>[0-9A-Fa-f:.]+)\])?:)?(?P<port>[0-9]{1,5})"
)


class TcpAddress(NamedTuple):
    """A port of an interface."""

    host: str
    port: int


def parse_address(text: str) -> TcpAddress | Path:
    """The address that a user means; a path is made absolute.

    Raises:
        ValueError: none.
    """
    scheme, colon, path = text.partition(":")
    if scheme == "unix" and colon and path:
        return Path(path).absolute()
    found = _TCP.fullmatch(text)
    if found is None or not 0 < int(found["port"]) <= MAX_PORT:
        raise ValueError(f"not unix:PATH, HOST:PORT or PORT: {text!r}")
    return TcpAddress(found["host"] or found["six"] or LOOPBACK, int(found["port"]))


def canonical_address(text: str) -> str:
    """The same as a text that means it everywhere.

    Raises:
        ValueError: as for ``parse_address``.
    """
    address = parse_address(text)
    if isinstance(address, Path):
        return f"unix:{address}"
    return (
        f"[{address.host}]:{address.port}" if ":" in address.host else ":".join(map(str, address))
    )

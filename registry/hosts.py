"""Which hosts serve a registry's images: ``hosts.toml`` as containerd has it (its docs/hosts.md).

Pure: the text of a file in, ``HostConfig`` values out. Mirrors come in the order in which the file
names them, the registry itself (``server``) last.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias
from urllib.parse import urlsplit

from registry.errors import ConfigurationError
from registry.reference import DOCKER_HUB_ENDPOINT, DOCKER_HUB_NAMES

HOSTS_FILE_LIMIT_BYTES = 1 << 20
HOSTS_LIMIT = 64
FILES_LIMIT = 64
HEADERS_LIMIT = 64
LONGEST_DIAL_TIMEOUT_S = 3600.0
API_PATH = "/v2"

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}", re.ASCII)
_HEADER_VALUE = re.compile(r"[\t -~\x80-\xff]{0,8192}")
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_NETLOC = re.compile(r"(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?", re.ASCII)
_OURS = frozenset({"host", "content-length", "transfer-encoding", "connection", "range"})
"""Headers that a file cannot set: a request would mean something else."""

_Table: TypeAlias = Mapping[str, object]


class Capability(Enum):
    """What a host may be asked for."""

    PULL = "pull"
    """Content by its digest."""
    RESOLVE = "resolve"
    """What a tag means: only a trusted host can say."""
    PUSH = "push"
    REFERRERS = "referrers"
    """What refers to a digest: nothing proves that list either."""


@dataclass(frozen=True, slots=True)
class HostConfig:
    """One host, and how to speak to it."""

    host: str
    """``host[:port]``, lower case."""
    scheme: str = ""
    """``http`` or ``https``; empty: as the host's name and the user's options say."""
    path: str = API_PATH
    """What comes before ``/REPOSITORY``."""
    capabilities: frozenset[Capability] = frozenset(Capability)
    ca: tuple[str, ...] = ()
    """Files of certificate authorities that are trusted as well."""
    client: tuple[tuple[str, str], ...] = ()
    """Files of certificate and key; the key is empty where one file holds both."""
    skip_verify: bool = False
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    dial_timeout_s: float | None = None


def default_host(endpoint: str) -> HostConfig:
    """The registry itself, without any configuration."""
    return HostConfig(endpoint)


def folder_names(registry: str) -> tuple[str, ...]:
    """Names of the folder that speaks of a registry, best first; ``_default`` is not among them."""
    name, colon, port = registry.rpartition(":")
    if colon and port.isdigit():
        return f"{name}_{port}_", registry
    return (registry,)


def parse_hosts_file(raw: bytes, folder: str, endpoint: str) -> tuple[HostConfig, ...]:
    """Read a ``hosts.toml``; relative paths in it count from ``folder``.

    Args:
        raw: the file.
        folder: the folder in which it lies.
        endpoint: ``host[:port]`` of the registry, which is asked last if no ``server`` is given.

    Raises:
        ConfigurationError: not TOML, or a value of the wrong kind.
    """
    import tomllib  # only now: most machines have no such file

    what = f"{folder}/hosts.toml"
    try:
        document = tomllib.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{what}: not TOML: {str(error)[:120]}") from error
    tables = _table(document.get("host", {}), f"{what}: host")
    if len(tables) > HOSTS_LIMIT:
        raise ConfigurationError(f"{what}: {len(tables)} hosts pass the limit of {HOSTS_LIMIT}")
    hosts = []
    for url, value in tables.items():
        where = f"{what}: host {_shown(url)}"
        hosts.append(_host(url, _table(value, where), folder, where))
    server = _string(document, "server", what)
    hosts.append(_host(server or "", document, folder, what, endpoint))
    return tuple(hosts)


def certificate_files(names: tuple[str, ...], folder: str, endpoint: str) -> HostConfig:
    """Docker's way: ``*.crt`` are authorities, ``*.cert`` with ``*.key`` client certificates."""
    ordered = sorted(names)
    keys = {name for name in ordered if name.endswith(".key")}
    client = []
    for name in ordered:
        if name.endswith(".cert"):
            key = f"{name.removesuffix('.cert')}.key"
            client.append((f"{folder}/{name}", f"{folder}/{key}" if key in keys else ""))
    return HostConfig(
        endpoint,
        ca=tuple(f"{folder}/{name}" for name in ordered if name.endswith(".crt")),
        client=tuple(client),
    )


def _host(url: str, table: _Table, folder: str, what: str, endpoint: str = "") -> HostConfig:
    host, scheme, path = endpoint, "", API_PATH
    path_is_given = _boolean(table, "override_path", what)
    if url:
        scheme, host, path = _split_url(url, what)
        # containerd's documentation names the Hub so, where nobody speaks the protocol.
        host = DOCKER_HUB_ENDPOINT if host in DOCKER_HUB_NAMES else host
        if not path.endswith(API_PATH) and not path_is_given:
            path += API_PATH
    return HostConfig(
        host=host,
        scheme=scheme,
        path=path,
        capabilities=_capabilities(table, what),
        ca=tuple(_path(name, folder) for name in _strings(table.get("ca"), f"{what}: ca")),
        client=_client(table.get("client"), folder, f"{what}: client"),
        skip_verify=_boolean(table, "skip_verify", what),
        headers=_headers(table.get("header"), f"{what}: header"),
        dial_timeout_s=_duration(_string(table, "dial_timeout", what), f"{what}: dial_timeout"),
    )


def _split_url(text: str, what: str) -> tuple[str, str, str]:
    """Scheme, host and path; as in containerd, HTTPS where there is no scheme."""
    full = text if text.startswith(("http://", "https://")) else f"https://{text}"
    try:
        parts = urlsplit(full)
        port = parts.port
    except ValueError as error:
        raise ConfigurationError(f"{what}: not a URL: {_shown(text)}") from error
    netloc = parts.netloc.lower()
    if not _NETLOC.fullmatch(netloc) or port == 0 or parts.query or parts.fragment:
        raise ConfigurationError(f"{what}: not the URL of a host: {_shown(text)}")
    path = "/".join(part for part in parts.path.split("/") if part not in ("", "."))
    if ".." in path.split("/") or not path.isascii() or not path.isprintable():
        raise ConfigurationError(f"{what}: not a path of a host: {_shown(text)}")
    return parts.scheme, netloc, f"/{path}" if path else ""


def _shown(url: str) -> str:
    """A URL for messages, without a password that somebody may have put into it."""
    return repr(url.rpartition("@")[2][:200])


def _capabilities(table: _Table, what: str) -> frozenset[Capability]:
    names = _strings(table.get("capabilities"), f"{what}: capabilities")
    known = {capability.value: capability for capability in Capability}
    unknown = [name for name in names if name.lower() not in known]
    if unknown:
        raise ConfigurationError(f"{what}: unknown capability {unknown[0][:80]!r}")
    return frozenset(known[name.lower()] for name in names) or frozenset(Capability)


def _client(value: object, folder: str, what: str) -> tuple[tuple[str, str], ...]:
    items = value if isinstance(value, list) else [] if value is None else [value]
    pairs = []
    for item in items[:FILES_LIMIT]:
        if isinstance(item, str) and item:
            pairs.append((_path(item, folder), ""))
            continue
        names = item if isinstance(item, list) else []
        if len(names) != 2 or not all(isinstance(name, str) for name in names) or not names[0]:
            raise ConfigurationError(f"{what}: not a file or a pair of files")
        pairs.append((_path(names[0], folder), _path(names[1], folder) if names[1] else ""))
    return tuple(pairs)


def _headers(value: object, what: str) -> tuple[tuple[str, str], ...]:
    headers = []
    for name, item in _table({} if value is None else value, what).items():
        if not _HEADER_NAME.fullmatch(name) or name.lower() in _OURS:
            raise ConfigurationError(f"{what}: {name[:80]!r} cannot be set")
        for text in _strings(item, f"{what}: {name}"):
            if not _HEADER_VALUE.fullmatch(text):
                raise ConfigurationError(f"{what}: {name}: not the value of a header")
            headers.append((name, text.strip()))
    if len(headers) > HEADERS_LIMIT:
        raise ConfigurationError(f"{what}: {len(headers)} pass the limit of {HEADERS_LIMIT}")
    return tuple(headers)


def _duration(text: str | None, what: str) -> float | None:
    """Seconds from a duration as Go writes it, such as ``1m30s``; None where there is none."""
    if not text:
        return None
    parts = list(_DURATION_PART.finditer(text[:64]))
    total_s = sum(float(part[1]) * _UNIT_S[part[2]] for part in parts)
    whole = "".join(part[0] for part in parts) == text
    if not whole or not 0 < total_s <= LONGEST_DIAL_TIMEOUT_S:
        raise ConfigurationError(f"{what}: not a time such as 500ms: {text[:40]!r}")
    return total_s


def _table(value: object, what: str) -> _Table:
    if not isinstance(value, dict):
        raise ConfigurationError(f"{what}: not a table")
    return value


def _string(table: _Table, key: str, what: str) -> str | None:
    value = table.get(key)
    if value is not None and not isinstance(value, str):
        raise ConfigurationError(f"{what}: {key} is not a string")
    return value


def _boolean(table: _Table, key: str, what: str) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise ConfigurationError(f"{what}: {key} is neither true nor false")
    return value


def _strings(value: object, what: str) -> tuple[str, ...]:
    """A string or a list of strings."""
    items = value if isinstance(value, list) else [] if value is None else [value]
    strings = tuple(item for item in items[:FILES_LIMIT] if isinstance(item, str))
    if len(strings) != len(items):
        raise ConfigurationError(f"{what}: not a string or a list of at most {FILES_LIMIT} strings")
    return strings


def _path(name: str, folder: str) -> str:
    return name if name.startswith("/") else f"{folder}/{name}"

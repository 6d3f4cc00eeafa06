"""Credential files: Docker's ``config.json`` and the ``auth.json`` of containers/image.

Pure: file contents in, "these credentials" or "ask this helper" out. Keys are host names
(``ghcr.io``, ``localhost:5000``), names with a path (``quay.io/team``, the longest match wins), or
Docker's old URLs (``https://index.docker.io/v1/``).
"""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from registry.errors import CredentialError
from registry.jsondoc import JsonObject, as_object, parse_object, take_string, take_string_map
from registry.reference import DOCKER_HUB

CONFIG_LIMIT_BYTES = 1 << 20
HELPER_REPLY_LIMIT_BYTES = 256 << 10
HUB_SERVER_URL = "https://index.docker.io/v1/"
"""What Docker calls the Hub in its files and asks helpers for."""

_TOKEN_USER = "<token>"  # noqa: S105 - the name a helper gives for an identity token
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_NO_CREDENTIALS = ("credentials not found", "no credentials")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What proves who we are; the secrets never show in ``repr``."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    """OAuth2 refresh token; used instead of the password."""
    registry_token: str = field(default="", repr=False)
    """Bearer token to be sent as it is."""


@dataclass(frozen=True, slots=True)
class Helper:
    """A credential helper program that must be asked."""

    program: str
    server_url: str


@dataclass(frozen=True, slots=True)
class CredentialFile:
    """What a credential file says."""

    entries: Mapping[str, Credentials]
    """By key without scheme and trailing slash."""
    helpers: Mapping[str, str]
    default_helper: str = ""


def _key(text: str) -> str:
    """A key of ``auths`` as a host with an optional path."""
    return text.partition("://")[2].rstrip("/") if "://" in text else text.rstrip("/")


def _keys(registry: str, repository: str) -> list[str]:
    """Keys that speak for a repository, best first."""
    parts = f"{registry}/{repository}".split("/")
    names = ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]
    names += [f"{registry}/v2", f"{registry}/v1"]
    if registry == DOCKER_HUB:
        names += ["index.docker.io/v1", "index.docker.io", "registry-1.docker.io"]
    return names


def decode_credential_file(raw: bytes, what: str) -> CredentialFile:
    """Read ``config.json`` or ``auth.json``; ``what`` names it in messages.

    Raises:
        ContentError: not such a file.
        CredentialError: an ``auth`` that is not base64 of ``name:password``.
    """
    document = parse_object(raw, what, CONFIG_LIMIT_BYTES)
    entries: dict[str, Credentials] = {}
    for key, value in as_object(document.pop("auths", {}), f"{what}: auths").items():
        credentials = _decode_entry(dict(as_object(value, f"{what}: auths")), f"{what}: {key[:80]}")
        if credentials != Credentials():
            entries[_key(key)] = credentials
    helpers = take_string_map(document, "credHelpers", what)
    return CredentialFile(
        entries=entries,
        helpers={_key(key): helper for key, helper in helpers.items()},
        default_helper=take_string(document, "credsStore", what),
    )


def _decode_entry(entry: JsonObject, what: str) -> Credentials:
    username = take_string(entry, "username", what)
    password = take_string(entry, "password", what)
    encoded = take_string(entry, "auth", what)
    if encoded:
        try:
            text = base64.b64decode(encoded, validate=True).decode("utf-8")
        except (binascii.Error, ValueError) as error:
            raise CredentialError(f"{what}: auth is not base64") from error
        username, colon, password = text.partition(":")
        if not colon:
            raise CredentialError(f"{what}: auth is not base64 of name:password")
        password = password.rstrip("\0")
    return Credentials(
        username=username,
        password=password,
        identity_token=take_string(entry, "identitytoken", what),
        registry_token=take_string(entry, "registrytoken", what),
    )


def find_credentials(
    file: CredentialFile, registry: str, repository: str
) -> Credentials | Helper | None:
    """What ``file`` says about a repository; a helper comes before what is written plainly.

    Raises:
        CredentialError: the helper's name is not the name of a program.
    """
    keys = _keys(registry, repository)
    server_url = HUB_SERVER_URL if registry == DOCKER_HUB else registry
    for key in keys:
        if key in file.helpers:
            return _helper(file.helpers[key], server_url)
    found = next((file.entries[key] for key in keys if key in file.entries), None)
    if found is None and file.default_helper:
        return _helper(file.default_helper, server_url)
    return found


def _helper(name: str, server_url: str) -> Helper:
    if not _HELPER_NAME.fullmatch(name):
        raise CredentialError(f"credential helper {name[:80]!r}: not a program name")
    return Helper(f"docker-credential-{name}", server_url)


def decode_helper_reply(output: bytes, status: int, helper: Helper) -> Credentials | None:
    """What a helper answered to ``get``; None when it knows nothing of the registry.

    Raises:
        CredentialError: the helper failed.
        ContentError: its answer is not JSON.
    """
    if status:
        text = output[:200].decode("utf-8", "replace").strip()
        if text.lower().startswith(_NO_CREDENTIALS):
            return None
        raise CredentialError(f"{helper.program} failed with status {status}: {text!r}")
    reply = parse_object(output, helper.program, HELPER_REPLY_LIMIT_BYTES)
    username = take_string(reply, "Username", helper.program)
    secret = take_string(reply, "Secret", helper.program)
    if username == _TOKEN_USER:
        return Credentials(identity_token=secret)
    return Credentials(username, secret)

"""Proves to a registry who we are: anonymous, basic, or by bearer tokens.

Nothing is sent before the registry asks. What it asks for once is sent from then on, until it
expires or is refused. Tasks that are refused together wait for one of them to get a new token.
"""

import base64
from dataclasses import dataclass
from urllib.parse import urlencode

import httpx
import trio

from registry.challenge import (
    TOKEN_REPLY_LIMIT_BYTES,
    Challenge,
    decode_token,
    merge_scopes,
    parse_challenges,
)
from registry.credentials import Credentials
from registry.errors import DeniedError, TransportError
from registry.keychain import look_up
from registry.reference import Reference
from registry.replies import refusal
from registry.wire import Wire, host_of

EXPIRY_MARGIN_S = 10.0
_OK = 200


@dataclass(frozen=True, slots=True)
class _Grant:
    header: str
    expires_at: float
    """On trio's clock."""


class Authorizer:
    """The ``Authorization`` headers for one registry."""

    def __init__(self, reference: Reference, wire: Wire) -> None:
        self._reference = reference
        self._wire = wire
        self._lock = trio.Lock()
        self._grants: dict[tuple[str, ...], _Grant] = {}
        self._credentials: Credentials | None = wire.access.credentials
        self._looked_up = wire.access.credentials is not None

    def header(self, scopes: tuple[str, ...]) -> str | None:
        """What to send for these scopes, as far as is known."""
        grant = self._grants.get(scopes)
        return grant.header if grant and trio.current_time() < grant.expires_at else None

    async def answer(
        self, response: httpx.Response, scopes: tuple[str, ...], refused: str | None
    ) -> str:
        """The header that answers a 401; ``refused`` is the one that was sent.

        Raises:
            DeniedError: no credentials, or they are refused.
            RegistryError: the token service or a credential helper fails.
        """
        challenges = parse_challenges(response.headers.get_list("www-authenticate"))
        async with self._lock:
            known = self.header(scopes)
            if known is not None and known != refused:
                return known  # another task was asked the same, and has the answer
            if not self._looked_up:
                self._credentials = await look_up(
                    self._reference.registry,
                    self._reference.repository,
                    self._wire.access.timeout_s,
                )
                self._looked_up = True
            grant = await self._obtain(challenges, scopes, response.url)
            self._grants[scopes] = grant
            return grant.header

    async def _obtain(
        self, challenges: tuple[Challenge, ...], scopes: tuple[str, ...], asked_by: httpx.URL
    ) -> _Grant:
        credentials = self._credentials or Credentials()
        by_scheme = {challenge.scheme: challenge for challenge in challenges}
        if "bearer" in by_scheme:
            if credentials.registry_token:
                return _Grant(f"Bearer {credentials.registry_token}", float("inf"))
            return await self._fetch_token(by_scheme["bearer"], scopes, credentials, asked_by)
        host = host_of(asked_by)
        if "basic" not in by_scheme:
            asked = ", ".join(sorted(by_scheme)[:5]) or "nothing"
            raise DeniedError(
                f"{host}: asks for a login of a kind that is not known ({asked!r:.80})", status=401
            )
        if not credentials.username:
            raise DeniedError(
                f"{host}: needs a login, and no credential file has one "
                f"(docker login {self._reference.registry})",
                status=401,
            )
        return _Grant(_basic(credentials), float("inf"))

    async def _fetch_token(
        self,
        challenge: Challenge,
        scopes: tuple[str, ...],
        credentials: Credentials,
        asked_by: httpx.URL,
    ) -> _Grant:
        """Docker's token specification: GET, or the OAuth2 POST when there is a refresh token."""
        host = host_of(asked_by)
        wanted = merge_scopes(scopes, challenge.parameters.get("scope", ""))
        service = challenge.parameters.get("service", "")
        try:
            realm = asked_by.join(challenge.parameters["realm"])
        except (KeyError, httpx.InvalidURL, ValueError) as error:
            raise TransportError(f"{host}: names no usable token service") from error
        self._wire.check_target(realm, asked_by)
        method, content, authorization = "GET", None, None
        headers = {"Accept": "application/json"}
        if credentials.identity_token:
            method = "POST"
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            form = {
                "grant_type": "refresh_token",
                "service": service,
                "client_id": self._wire.access.user_agent,
                "scope": " ".join(wanted),
                "refresh_token": credentials.identity_token,
            }
            content = urlencode(form).encode()
        else:
            if credentials.username:
                authorization = _basic(credentials)
            realm = realm.copy_merge_params({"service": service} if service else {})
            realm = realm.copy_merge_params({"scope": wanted})
        began = trio.current_time()
        async with self._wire.exchange(
            method, realm, headers, authorization=authorization, content=content
        ) as response:
            body = await self._wire.read(response, TOKEN_REPLY_LIMIT_BYTES)
            if response.status_code != _OK:
                raise refusal(response.status_code, body, f"{host_of(realm)}: token for {host}")
        token = decode_token(body, f"{host_of(realm)}: token for {host}")
        return _Grant(f"Bearer {token.value}", began + token.lifetime_s - EXPIRY_MARGIN_S)


def _basic(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"

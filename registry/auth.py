"""Proves to one host who we are: anonymous, basic, or by bearer tokens.

Nothing is sent before the host asks. What it asks for once is sent from then on. A token is
replaced shortly before it expires, or when it is refused; credentials are looked up anew when their
files have changed or they were refused. Tasks that need the same wait for one of them to get it.
"""

import base64
import logging
from dataclasses import dataclass, field
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
from registry.connections import Headers
from registry.credentials import Credentials
from registry.errors import DeniedError, ProtocolError, RegistryError
from registry.httperrors import host_of
from registry.keychain import Keychain
from registry.replies import refusal
from registry.wire import Wire, origin

EXPIRY_MARGIN_S = 10.0
"""A token is not sent any more when it is so close to its end."""
REFRESH_SHARE = 0.75
"""Part of its life after which a token is replaced, while it can still be used."""
DENIED_S = 5.0
"""How long a refusal stands before the same credentials are tried again."""
_OK, _UNAUTHORIZED = 200, 401

Scopes = tuple[str, ...]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Grant:
    header: str = field(repr=False)
    refresh_at: float
    expires_at: float
    """Both on trio's clock."""
    challenge: Challenge
    asked_by: httpx.URL


class Authorizer:
    """The ``Authorization`` headers for one host."""

    def __init__(self, wire: Wire, keychain: Keychain, private: Headers = ()) -> None:
        """Speak through ``wire``; ``private`` are headers that the host's own origin gets."""
        self._wire = wire
        self._keychain = keychain
        self._private = private
        self._lock = trio.Lock()
        self._grants: dict[Scopes, _Grant] = {}
        self._denials: dict[Scopes, tuple[float, str]] = {}
        self._told: set[Scopes] = set()
        """For what a refusal was logged, until a login works again."""

    async def header(self, scopes: Scopes) -> str | None:
        """What to send for these scopes, as far as is known.

        Raises:
            RegistryError: what was known has expired, and cannot be had anew.
        """
        grant = self._grants.get(scopes)
        now = trio.current_time()
        if grant is None or now < grant.refresh_at:
            return grant.header if grant else None
        usable = now < grant.expires_at
        if usable and self._lock.locked():
            return grant.header  # another task is getting the next one
        try:
            return await self._renew(scopes, grant)
        except RegistryError:
            if usable:
                return grant.header
            raise

    async def _renew(self, scopes: Scopes, old: _Grant) -> str:
        async with self._lock:
            grant = self._grants.get(scopes)
            if grant is None or grant is old:
                grant = await self._obtain((old.challenge,), scopes, old.asked_by)
                self._grants[scopes] = grant
                self._told.discard(scopes)
            return grant.header

    async def answer(self, response: httpx.Response, scopes: Scopes, refused: str | None) -> str:
        """The header that answers a 401; ``refused`` is the one that was sent.

        Raises:
            DeniedError: no credentials, or they are refused.
            RegistryError: the token service or a credential helper fails.
        """
        challenges = parse_challenges(response.headers.get_list("www-authenticate"))
        async with self._lock:
            known = self._grants.get(scopes)
            if known is not None and known.header != refused:
                return known.header  # another task was asked the same, and has the answer
            self._check_denial(scopes)
            self._grants.pop(scopes, None)
            if refused is not None:
                self._keychain.forget()
            try:
                grant = await self._obtain(challenges, scopes, response.url)
            except DeniedError as error:
                self._note_denial(scopes, str(error))
                raise
            self._grants[scopes] = grant
            self._told.discard(scopes)
            return grant.header

    def refused(self, scopes: Scopes, header: str) -> None:
        """A header that was made just now is refused as well."""
        grant = self._grants.get(scopes)
        if grant is not None and grant.header == header:
            del self._grants[scopes]
            self._keychain.forget()
            self._note_denial(scopes, f"{host_of(grant.asked_by)}: refuses the login")

    def _note_denial(self, scopes: Scopes, message: str) -> None:
        self._denials[scopes] = (trio.current_time() + DENIED_S, message)
        if scopes not in self._told:
            self._told.add(scopes)
            extra = {"event": "login_refused", "host": self._keychain.registry}
            log.warning("%s", message, extra=extra)

    def _check_denial(self, scopes: Scopes) -> None:
        """Let a thousand reads with a wrong password not be a thousand logins."""
        until, message = self._denials.get(scopes, (0.0, ""))
        if trio.current_time() < until:
            raise DeniedError(f"{message} (not tried again yet)", status=_UNAUTHORIZED)

    async def _obtain(
        self, challenges: tuple[Challenge, ...], scopes: Scopes, asked_by: httpx.URL
    ) -> _Grant:
        credentials = await self._keychain.credentials()
        by_scheme = {challenge.scheme: challenge for challenge in challenges}
        never = float("inf")
        if bearer := by_scheme.get("bearer"):
            if credentials.registry_token:
                header = f"Bearer {credentials.registry_token}"
                return _Grant(header, never, never, bearer, asked_by)
            try:
                return await self._fetch_token(bearer, scopes, credentials, asked_by)
            except DeniedError:
                self._keychain.forget()
                again = await self._keychain.credentials()
                if again == credentials:
                    raise
                return await self._fetch_token(bearer, scopes, again, asked_by)
        host = host_of(asked_by)
        if "basic" not in by_scheme:
            asked = ", ".join(sorted(by_scheme)[:5]) or "nothing"
            raise DeniedError(
                f"{host}: asks for a login of a kind that is not known ({asked!r:.80})",
                status=_UNAUTHORIZED,
            )
        if not credentials.username:
            raise DeniedError(
                f"{host}: needs a login, and no credential file has one "
                f"(docker login {self._keychain.registry})",
                status=_UNAUTHORIZED,
            )
        return _Grant(_basic(credentials), never, never, by_scheme["basic"], asked_by)

    async def _fetch_token(
        self, challenge: Challenge, scopes: Scopes, credentials: Credentials, asked_by: httpx.URL
    ) -> _Grant:
        """Docker's token specification: GET, or the OAuth2 POST when there is a refresh token."""
        host = host_of(asked_by)
        wanted = merge_scopes(scopes, challenge.parameters.get("scope", ""))
        service = challenge.parameters.get("service", "")
        try:
            realm = asked_by.join(challenge.parameters["realm"])
        except (KeyError, httpx.InvalidURL, ValueError) as error:
            raise ProtocolError(f"{host}: names no usable token service") from error
        self._wire.check_target(realm, asked_by)
        method, content = "GET", None
        private = list(self._private) if origin(realm) == origin(asked_by) else []
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
                private = with_authorization(private, _basic(credentials))
            realm = realm.copy_merge_params({"service": service} if service else {})
            realm = realm.copy_merge_params({"scope": wanted})
        began = trio.current_time()
        async with self._wire.exchange(
            method, realm, headers, private=private, content=content
        ) as response:
            body = await self._wire.read(response, TOKEN_REPLY_LIMIT_BYTES)
            if response.status_code != _OK:
                raise refusal(response.status_code, body, f"{host_of(realm)}: token for {host}")
        token = decode_token(body, f"{host_of(realm)}: token for {host}")
        extra = {"event": "token_fetched", "host": host}
        log.debug("%s: new token, for %d s", host, token.lifetime_s, extra=extra)
        expires_at = began + token.lifetime_s - EXPIRY_MARGIN_S
        refresh_at = min(began + REFRESH_SHARE * token.lifetime_s, expires_at)
        return _Grant(f"Bearer {token.value}", refresh_at, expires_at, challenge, asked_by)


def with_authorization(private: Headers, header: str | None) -> list[tuple[str, str]]:
    """Configured headers and a login, which takes the place of a configured one."""
    if header is None:
        return list(private)
    kept = [pair for pair in private if pair[0].lower() != "authorization"]
    return [*kept, ("Authorization", header)]


def _basic(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"

"""A bearer-token service that a real docker-registry trusts.

It follows Docker's "Token Authentication Specification": GET with basic credentials or none, POST
with a refresh token. Keys and signatures are made by ``openssl``.

    async with token_server(Certificate.make(folder)) as service:
        with running_registry(folder, token=service.authority) as registry: ...
"""

import base64
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from tests.support.http_server import Reply, Request, ScriptedServer, scripted_server
from tests.support.registry_server import PASSWORD, USERNAME, Certificate, TokenAuthority

SERVICE, ISSUER = "registry under test", "token server under test"
REFRESH_TOKEN = "a refresh token"
_NEVER = 4102444800  # 2100-01-01: the registry checks against its own clock


def sign(keys: Certificate, claims: dict[str, object]) -> str:
    """A JSON web token (RFC 7515) that carries its own certificate."""
    pem = keys.certificate.read_text().split("-----")[2]
    header = {"typ": "JWT", "alg": "RS256", "x5c": ["".join(pem.split())]}
    text = b".".join(_base64url(json.dumps(part).encode()) for part in (header, claims))
    signature = subprocess.run(
        ["openssl", "dgst", "-sha256", "-sign", keys.key],
        input=text,
        check=True,
        capture_output=True,
    ).stdout
    return b".".join((text, _base64url(signature))).decode()


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


@dataclass
class TokenServer:
    """Gives ``pull`` to everybody and ``push`` to ``USERNAME``."""

    keys: Certificate
    server: ScriptedServer | None = None
    given: list[list[str]] = field(default_factory=list)
    """The scopes of each token that was given."""
    expires_in: int | None = None

    @property
    def authority(self) -> TokenAuthority:
        assert self.server is not None
        realm = f"http://{self.server.host}/token"
        return TokenAuthority(realm, SERVICE, ISSUER, self.keys.certificate)

    def answer(self, request: Request) -> Reply:
        if request.method == "POST":
            fields = parse_qs(request.body.decode())
            known = fields["refresh_token"] == [REFRESH_TOKEN]
            allowed = known and fields["grant_type"] == ["refresh_token"]
            scopes = fields["scope"][0].split()
        else:
            fields = parse_qs(urlsplit(request.target).query)
            sent = request.headers.get("authorization")
            pair = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
            known = sent == f"Basic {pair}"
            allowed = known or sent is None
            scopes = fields.get("scope", [])
        if not allowed or fields["service"] != [SERVICE]:
            return Reply(401, json.dumps({"details": "incorrect username or password"}).encode())
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            granted = [a for a in actions.split(",") if a == "pull" or known]
            access.append({"type": kind, "name": name, "actions": granted})
        self.given.append(scopes)
        claims = {
            "iss": ISSUER,
            "aud": SERVICE,
            "sub": "",
            "exp": _NEVER,
            "nbf": 0,
            "iat": 0,
            "jti": str(len(self.given)),
            "access": access,
        }
        body: dict[str, object] = {"token": sign(self.keys, claims)}
        if self.expires_in is not None:
            body["expires_in"] = self.expires_in
        return Reply(200, json.dumps(body).encode())


@contextlib.asynccontextmanager
async def token_server(keys: Certificate) -> AsyncIterator[TokenServer]:
    service = TokenServer(keys)
    async with scripted_server(service.answer) as server:
        service.server = server
        yield service

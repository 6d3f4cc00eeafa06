"""A login to a registry in memory: by password, or by tokens that expire or are withdrawn."""

import base64
import json
from dataclasses import dataclass, field

from tests.support.http_server import Reply, Request

USER, PASSWORD = "somebody", "s3cret-password"
REFRESH_TOKEN = "s3cret-refresh-token"
SECRETS = (PASSWORD, REFRESH_TOKEN, "s3cret-bearer", "s3cret-signature", "s3cret-header")
"""What no log, error or status may hold; tokens begin with the third of them."""


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@dataclass
class FakeLogin:
    """Breaks the answers of a ``FakeRegistry`` to those who are not logged in."""

    tokens: bool = True
    """By tokens, else by password."""
    password: str = PASSWORD
    lifetime_s: int = 300
    breaks_tokens: Reply | None = None
    """What the token service answers instead."""
    given: list[str] = field(default_factory=list)
    """The tokens that were given."""
    good: set[str] = field(default_factory=set)
    """Those of them that are accepted."""
    asked: list[Request] = field(default_factory=list)
    """Requests to the token service."""

    def withdraw(self) -> None:
        self.good.clear()

    def challenge(self) -> Reply:
        how = 'Bearer realm="/token",service="fake"' if self.tokens else 'Basic realm="fake"'
        return Reply(401, headers={"WWW-Authenticate": how})

    def check(self, request: Request, reply: Reply) -> Reply:
        sent = request.headers.get("authorization", "")
        if self.tokens:
            return reply if sent.removeprefix("Bearer ") in self.good else self.challenge()
        return reply if sent == basic(USER, self.password) else self.challenge()

    def give(self, request: Request) -> Reply:
        """The answer of the token service."""
        self.asked.append(request)
        if self.breaks_tokens is not None:
            return self.breaks_tokens
        by_password = request.headers.get("authorization") == basic(USER, self.password)
        if not (by_password or REFRESH_TOKEN.encode() in request.body):
            return Reply(401, b'{"errors": [{"code": "UNAUTHORIZED"}]}')
        token = f"s3cret-bearer-{len(self.given)}"
        self.given.append(token)
        self.good.add(token)
        return Reply(200, json.dumps({"token": token, "expires_in": self.lifetime_s}).encode())

"""Looks up the addresses of hosts: in few threads, and with a memory for when nobody answers.

A lookup is a blocking call that cannot be ended. Of trio's default threads they could use up all,
and what needs threads for other work would wait for a name server.
"""

import socket
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import trio

LOOKUPS_AT_ONCE = 8
FRESH_S = 30.0
"""How long an answer is used without asking again."""
DOUBTED_S = 5.0
"""The same where a connection has failed meanwhile: the host may have moved."""
REPLACE_WITHIN_S = 2.0
"""How long a new answer is waited for where there is an old one."""
NAMES_LIMIT = 256

_V4: TypeAlias = tuple[
    Literal[socket.AddressFamily.AF_INET], socket.SocketKind, int, str, tuple[str, int]
]
_V6: TypeAlias = tuple[
    Literal[socket.AddressFamily.AF_INET6],
    socket.SocketKind,
    int,
    str,
    tuple[str, int, int, int] | tuple[int, bytes],
]
Addresses: TypeAlias = list[_V4 | _V6]
_Question: TypeAlias = tuple[bytes | None, bytes | str | int | None, int, int, int, int]


@dataclass(slots=True)
class _Known:
    addresses: Addresses
    asked_at: float


class Names(trio.abc.HostnameResolver):
    """A resolver for one run of trio."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(LOOKUPS_AT_ONCE)
        self._known: dict[_Question, _Known] = {}

    async def getaddrinfo(
        self,
        host: bytes | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,  # noqa: A002 - as trio names it
        proto: int = 0,
        flags: int = 0,
    ) -> Addresses:
        """As ``socket.getaddrinfo``; the last good answer where no new one can be had.

        Cancelled: the thread goes on, and its answer is dropped.
        """
        question = (host, port, family, type, proto, flags)
        known = self._known.get(question)
        if known is None:
            return await self._ask(question)
        if trio.current_time() - known.asked_at < FRESH_S:
            return known.addresses
        known.asked_at = trio.current_time()  # the others go on with what is known
        try:
            with trio.move_on_after(REPLACE_WITHIN_S):
                return await self._ask(question)
        except socket.gaierror:
            pass
        return known.addresses

    def doubt(self) -> None:
        """A connection has failed: ask again for all that was not asked for a moment ago."""
        now = trio.current_time()
        for known in self._known.values():
            if now - known.asked_at >= DOUBTED_S:
                known.asked_at = now - FRESH_S

    async def _ask(self, question: _Question) -> Addresses:
        look_up = partial(socket.getaddrinfo, *question)
        addresses: Addresses = await trio.to_thread.run_sync(
            look_up, abandon_on_cancel=True, limiter=self._limiter
        )
        if len(self._known) >= NAMES_LIMIT:
            self._known.clear()
        self._known[question] = _Known(addresses, trio.current_time())
        return addresses

    async def getnameinfo(
        self, sockaddr: tuple[str, int] | tuple[str, int, int, int], flags: int
    ) -> tuple[str, str]:
        """As ``socket.getnameinfo``."""
        return await trio.to_thread.run_sync(
            socket.getnameinfo, sockaddr, flags, abandon_on_cancel=True, limiter=self._limiter
        )


def use_names() -> None:
    """Look names up so in this run of trio, unless a resolver has been chosen already."""
    trio.socket.set_custom_hostname_resolver(_chosen() or Names())


def doubt_names() -> None:
    """A connection has failed: known addresses may not be right any more."""
    chosen = _chosen()
    if isinstance(chosen, Names):
        chosen.doubt()


def _chosen() -> trio.abc.HostnameResolver | None:
    """The resolver of this run of trio, if one has been chosen."""
    chosen = trio.socket.set_custom_hostname_resolver(None)
    trio.socket.set_custom_hostname_resolver(chosen)
    return chosen

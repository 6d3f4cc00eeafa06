"""Ways in which a server of blobs may break an honest answer to a request; see ``FakeRegistry``."""

import gzip
import re
from dataclasses import replace
from typing import Any

from tests.support.fake_registry import Break
from tests.support.http_server import Reply, Request

PAGE = b"<html><title>Please log in</title></html>"
HTML = {"Content-Type": "text/html; charset=utf-8"}
OTHER_SIZE = 99999


def with_headers(**headers: str) -> Break:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda request, reply: replace(reply, headers={**reply.headers, **named})


def changed(**values: Any) -> Break:
    return lambda request, reply: replace(reply, **values)


def no_body(**values: Any) -> Break:
    """None of the promised body, and then what ``values`` say."""
    return lambda request, reply: replace(reply, body=b"", length=len(reply.body), **values)


def half(**values: Any) -> Break:
    """Half of the body, and then what ``values`` say."""

    def broken(request: Request, reply: Reply) -> Reply:
        size = len(reply.body)
        return replace(reply, body=reply.body[: size // 2], length=size, **values)

    return broken


def wrong_bytes(request: Request, reply: Reply) -> Reply:
    """One bit in each 4 KiB."""
    body = bytearray(reply.body)
    for position in range(min(len(body), 4096) // 2, len(body), 4096):
        body[position] ^= 0x10
    return replace(reply, body=bytes(body))


def odd_encoding(request: Request, reply: Reply) -> Reply:
    lines = (
        f"HTTP/1.1 {reply.status} X",
        *(f"{name}: {value}" for name, value in reply.headers.items()),
        "Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    )
    return Reply(raw="\r\n".join(lines).encode())


def other_range(request: Request, reply: Reply) -> Reply:
    """As many bytes from one byte further on, as it says itself."""
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", reply.headers.get("Content-Range", ""))
    if not found:
        return reply
    start, end, size = map(int, found.groups())
    return replace(reply, headers={"Content-Range": f"bytes {start + 1}-{end + 1}/{size}"})


def other_size(request: Request, reply: Reply) -> Reply:
    place = reply.headers.get("Content-Range", "").partition("/")[0]
    return replace(reply, headers={"Content-Range": f"{place}/{OTHER_SIZE}"})


def no_content_range(request: Request, reply: Reply) -> Reply:
    return replace(reply, headers={})


def multipart(request: Request, reply: Reply) -> Reply:
    head = "--x\r\nContent-Type: application/octet-stream\r\nContent-Range: {}\r\n\r\n"
    place = reply.headers.get("Content-Range", "")
    body = head.format(place).encode() + reply.body + b"\r\n--x--\r\n"
    return replace(reply, body=body, headers={"Content-Type": "multipart/byteranges; boundary=x"})


def too_long(request: Request, reply: Reply) -> Reply:
    return replace(reply, body=reply.body + b"!")


def too_long_chunked(request: Request, reply: Reply) -> Reply:
    return replace(reply, body=reply.body + b"!", chunked=True)


def too_short(request: Request, reply: Reply) -> Reply:
    return replace(reply, body=reply.body[:-1])


def too_short_chunked(request: Request, reply: Reply) -> Reply:
    return replace(reply, body=b"", chunked=True)


def squeezed(request: Request, reply: Reply) -> Reply:
    headers = {**reply.headers, "Content-Encoding": "gzip"}
    return replace(reply, body=gzip.compress(reply.body), headers=headers, chunked=True)


def loop(request: Request, reply: Reply) -> Reply:
    return Reply(307, headers={"Location": request.target})


def sent_to(location: str) -> Reply:
    return Reply(307, headers={"Location": location})


ENDLESS_HEADER = Reply(raw=b"HTTP/1.1 200 OK\r\nX: " + b"x" * (1 << 20))
MANY_HEADERS = Reply(raw=b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * (1 << 16))
NOT_HTTP = Reply(raw=b"SSH-2.0-OpenSSH_9\r\n")

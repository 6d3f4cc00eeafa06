"""Faults of a server's answers to the requests for blobs that reads make.

Each is tried in one mount: once, with the server honest before and after; then for ever; then the
server is mended. What the cache has must stay readable all the while.
"""

from functools import partial

from faults.image import EVER, ONCE, WARM
from faults.model import Fault
from faults.mounts import RIGHT, SHORT_S
from faults.stage import Stage
from tests.support import broken_answers as broken
from tests.support.broken_answers import HTML, PAGE
from tests.support.fake_registry import Break, always, first, honest
from tests.support.http_server import Reply


def while_reading(breaks: Break, stage: Stage) -> str:
    """What readers see of broken answers."""
    server = stage.registry()
    with stage.mounted(server.host, "--timeout", SHORT_S) as mount:
        before = mount.outcome(WARM)
        server.registry.breaks = first(1, breaks)
        once = mount.outcome(ONCE)
        server.registry.breaks = breaks
        ever, kept = mount.outcome(EVER), mount.outcome(WARM)
        mount.status()
        server.registry.breaks = honest
        mended = mount.recovers()
    if before != RIGHT or kept != RIGHT:
        return f"cached: {before}, then {kept}"
    return f"once: {once}; for ever: {ever}; mended: {mended}"


NOTICED = "once: right; for ever: EIO; mended: right"
HARMLESS = "once: right; for ever: right; mended: right"


def answers(name: str, does: str, breaks: Break | Reply, expected: str = NOTICED) -> Fault:
    """A fault of this table."""
    return Fault(name, does, expected, partial(while_reading, always(breaks)))


def status(number: int, does: str, expected: str = NOTICED, **headers: str) -> Fault:
    """An answer with another status."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return answers(f"{number}", does, Reply(number, headers=named), expected)


def ranges_ignored(stage: Stage) -> str:
    """A server that sends whole blobs only."""
    server = stage.registry()
    with stage.mounted(server.host, "--timeout", SHORT_S) as mount:
        server.registry.sends_ranges = False
        before = len(server.blob_requests())
        seen = " and ".join(sorted({mount.outcome(name) for name in stage.image.files}))
        sent = len(server.blob_requests()) - before
    layers = len(stage.image.layers)
    return f"{seen}, {'each blob sent once' if sent <= layers else f'{sent} blobs sent'}"


def ranges_ignored_large(stage: Stage) -> str:
    """The hash tree lies behind the limit for such servers, so nothing can be proven."""
    image = stage.shared.large
    server = stage.registry(image)
    with stage.mounted(server.host, image=image) as mount:
        server.registry.sends_ranges = False
        assert server.registry.server is not None
        before = server.registry.server.sent_bytes
        seen = mount.outcome()
        sent = server.registry.server.sent_bytes - before
    often = "the blob sent once at most"
    if sent > 2 * len(image.layers[0]):  # what the kernel takes of the others is not read
        often = f"{sent} bytes sent"
    return f"{seen}, {often}"


FAULTS = (
    status(400, "400 Bad Request"),
    status(403, "403 Forbidden"),
    status(404, "404 Not Found"),
    status(416, "416 Range Not Satisfiable"),
    status(204, "204 No Content"),
    status(429, "429 Too Many Requests"),
    answers("429-second", "429 with Retry-After: 1", Reply(429, headers={"Retry-After": "1"})),
    answers(
        "429-day",
        "429 with Retry-After: a day",
        Reply(429, headers={"Retry-After": "86400"}),
    ),
    status(500, "500 Internal Server Error"),
    status(502, "502 Bad Gateway"),
    status(503, "503 Service Unavailable"),
    status(504, "504 Gateway Timeout"),
    answers("wrong-bytes", "one bit in each 4 KiB is flipped", broken.wrong_bytes),
    answers("other-range", "another range than asked for, and says so", broken.other_range),
    answers("other-size", "Content-Range with another size of the blob", broken.other_size),
    answers("no-content-range", "206 without Content-Range", broken.no_content_range),
    answers("multipart", "206 with multipart/byteranges", broken.multipart),
    answers("short", "a byte less than asked for", broken.too_short),
    answers("short-chunked", "an empty body in chunked coding", broken.too_short_chunked),
    answers("long", "a byte more than asked for", broken.too_long),
    answers("long-chunked", "a byte more, in chunked coding", broken.too_long_chunked),
    answers("gzip", "the body is compressed on the way", broken.squeezed),
    answers("reset", "connection reset before the answer", Reply(raw=b"", reset=True)),
    answers("hang-up", "connection closed before the answer", Reply(raw=b"")),
    answers("reset-in-body", "connection reset before the body", broken.no_body(reset=True)),
    answers("cut", "connection closed in the middle of each body", broken.half(cut=True)),
    answers("cut-early", "connection closed before the body", broken.no_body(cut=True)),
    answers("silence", "no answer at all (first byte)", Reply(hang=True)),
    answers("stall", "stalls in the middle of each body", broken.half(stall=True)),
    answers("drip", "a byte of the body each second", broken.changed(drip_s=1.0)),
    answers("web-page", "200 with an HTML page", Reply(200, PAGE, HTML)),
    answers(
        "web-page-chunked", "an HTML page in chunked coding", Reply(200, PAGE, HTML, chunked=True)
    ),
    answers("web-page-206", "206 of type text/html", broken.with_headers(Content_Type="text/html")),
    answers("redirect-loop", "redirects to itself", broken.loop),
    answers("redirect-nowhere", "307 without Location", Reply(307)),
    answers("redirect-ftp", "redirects to ftp:", broken.sent_to("ftp://localhost/x")),
    answers(
        "redirect-plain", "redirects to plain HTTP elsewhere", broken.sent_to("http://192.0.2.1/x")
    ),
    answers("not-http", "the banner of an SSH server", broken.NOT_HTTP),
    answers("endless-header", "a header of a megabyte", broken.ENDLESS_HEADER),
    answers("many-headers", "65536 headers", broken.MANY_HEADERS),
    answers("odd-length", "Content-Length: x", broken.with_headers(Content_Length="x")),
    answers("odd-coding", "chunked coding that is none", broken.odd_encoding),
    Fault(
        "ranges-ignored",
        "200 with the whole blob instead of 206",
        "right, each blob sent once",
        ranges_ignored,
    ),
    Fault(
        "ranges-ignored-large",
        "the same, a blob of 40 MB and ten readers at once",
        "EIO, the blob sent once at most",
        ranges_ignored_large,
    ),
)

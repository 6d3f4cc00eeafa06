"""Faults that an image meets while it is mounted, and a registry that is not what it says."""

import json
from collections.abc import Callable
from functools import partial

from faults.model import REFUSED, Fault
from faults.mounts import SHORT_S
from faults.stage import Stage
from tests.support import broken_answers as broken
from tests.support.broken_answers import HTML, PAGE
from tests.support.fake_registry import MANIFEST_TYPE, Break, always, first, sha256
from tests.support.http_server import Reply, Request

SHORT = ("--timeout", SHORT_S)
MANIFEST_LIMIT_BYTES = 4 << 20


def broken_at_mount(breaks: Break, stage: Stage) -> str:
    """The registry is broken from the beginning."""
    server = stage.registry()
    server.registry.breaks = breaks
    return stage.refusal(server.host, *SHORT)


def stopped(stage: Stage) -> str:
    """Nobody listens there."""
    server = stage.registry()
    server.stop()
    return stage.refusal(server.host, *SHORT)


def by_digest(breaks: Break, stage: Stage) -> str:
    """The manifest is asked for by its digest."""
    server = stage.registry()
    server.registry.breaks = breaks
    name = f"{server.host}/faults/image@{sha256(stage.image.manifest)}"
    return stage.refusal(name, *SHORT)


def other_manifest(stage: Stage) -> Break:
    """Well-formed, but of another image."""
    document = json.loads(stage.image.manifest)
    document["layers"].reverse()
    other = json.dumps(document).encode()
    return always(Reply(200, other, {"Content-Type": MANIFEST_TYPE}))


def swapped_manifest(stage: Stage) -> str:
    """By digest, and it is another one."""
    return by_digest(other_manifest(stage), stage)


def only(kind: str, breaks: Break) -> Break:
    """Break answers for manifests or blobs only."""
    return lambda request, reply: breaks(request, reply) if f"/{kind}/" in request.path else reply


def damaged(find: Callable[[bytes], int], stage: Stage) -> str:
    """One bit of the upper layer is another one, for ever."""
    server = stage.registry()
    layer = stage.image.layers[-1]
    place = find(layer)

    def flip(request: Request, reply: Reply) -> Reply:
        start = int(request.headers.get("range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        if not request.path.endswith(sha256(layer)) or not start <= place < start + len(reply.body):
            return reply
        body = bytearray(reply.body)
        body[place - start] ^= 1
        return Reply(reply.status, bytes(body), reply.headers)

    server.registry.breaks = flip
    return stage.refusal(server.host, *SHORT)


def in_the_table(layer: bytes) -> int:
    """A place in the chunk table of a layer."""
    return layer.index((0xCDE4EC67).to_bytes(4, "little")) + 60


def in_the_tree(layer: bytes) -> int:
    """A place in the root block of its hash tree."""
    return layer.index(b"verity\0\0") + 4096 + 10


def large_without_ranges(stage: Stage) -> str:
    """More than a server may send just because it sends no ranges."""
    server = stage.registry(stage.shared.large)
    server.registry.sends_ranges = False
    seen = stage.refusal(server.host, "--timeout", "30", image=stage.shared.large)
    assert server.registry.server is not None
    size = len(stage.shared.large.layers[0])
    return seen if server.registry.server.sent_bytes < size else f"{seen}, all was sent"


def refused(name: str, does: str, breaks: Break | Reply, words: str) -> Fault:
    """A fault that makes an image be refused, with words of the message."""
    return Fault(name, does, REFUSED + words, partial(broken_at_mount, always(breaks)))


def survived(name: str, does: str, breaks: Break) -> Fault:
    """A fault that a mount gets over."""
    return Fault(name, does, "mounted, right", partial(broken_at_mount, breaks))


FAULTS = (
    Fault("mount-stopped", "nobody listens there", REFUSED + "Connection refused", stopped),
    refused("mount-silence", "the registry never answers", Reply(hang=True), "no"),
    refused("mount-404", "no such image", Reply(404), "not found"),
    refused("mount-401", "login refused", Reply(401), "login"),
    refused("mount-403", "access denied", Reply(403), "not allowed (403)"),
    refused("mount-429", "429 for ever", Reply(429), "429"),
    refused("mount-503", "503 for ever", Reply(503), "503"),
    refused("mount-web-page", "an HTML page for a manifest", Reply(200, PAGE, HTML), "web page"),
    refused("mount-redirect-loop", "redirects to itself", broken.loop, "redirects"),
    refused(
        "mount-no-json",
        "a manifest that is no JSON",
        Reply(200, b"{", {"Content-Type": MANIFEST_TYPE}),
        "JSON",
    ),
    refused(
        "mount-huge-manifest",
        "a manifest of 5 MB",
        Reply(200, b" " * (MANIFEST_LIMIT_BYTES + (1 << 20)), {"Content-Type": MANIFEST_TYPE}),
        "limit",
    ),
    Fault(
        "mount-other-manifest",
        "another manifest than asked for by digest",
        REFUSED + "wanted sha256",
        swapped_manifest,
    ),
    refused(
        "mount-lost-layer", "404 for the layers", only("blobs", always(Reply(404))), "not found"
    ),
    Fault(
        "mount-table",
        "one bit of a chunk table is flipped",
        REFUSED + "chunk table",
        partial(damaged, in_the_table),
    ),
    Fault(
        "mount-tree",
        "one bit at the top of a hash tree is flipped",
        REFUSED + "hash block",
        partial(damaged, in_the_tree),
    ),
    survived("mount-503-twice", "503 to the first three requests", first(3, Reply(503))),
    survived("mount-hang-up", "the first three connections are closed", first(3, Reply(raw=b""))),
    survived("mount-silence-once", "no answer to the first request", first(1, Reply(hang=True))),
    Fault(
        "mount-no-ranges",
        "a layer of 40 MB from a server that ignores Range",
        REFUSED + "sends no ranges",
        large_without_ranges,
    ),
)

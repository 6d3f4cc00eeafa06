"""Whatever is broken: one clear line, no temporary file, no manifest.

Real processes, a real tmpfs that fills up, a real signal; registries that refuse or stall.
"""

import contextlib
import gzip
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import trio

from tests.support import tar_samples as tars
from tests.support.http_server import Reply, Request, ScriptedServer, scripted_server

WITHIN_S = 120
NOISE = random.Random(0).randbytes(3 << 20)
GOOD = tars.tar(tars.directory(b"./"), tars.file(b"noise", NOISE))
OTHER = tars.tar(tars.directory(b"./"), tars.file(b"other", NOISE[::-1]))
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
LAYOUTS = ["containerd", "erofs-spec"]


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def pack(tar: bytes) -> bytes:
    return gzip.compress(tar, 1, mtime=0)


def write_image(
    folder: Path, blobs: list[bytes], diff_ids: list[str], media_type: str = LAYER
) -> str:
    """An OCI layout with one image; its name."""
    place = folder / "blobs/sha256"
    place.mkdir(parents=True)

    def put(raw: bytes, kind: str) -> dict[str, object]:
        (place / hashlib.sha256(raw).hexdigest()).write_bytes(raw)
        return {"mediaType": kind, "digest": digest(raw), "size": len(raw)}

    config = {"architecture": "amd64", "os": "linux"}
    rootfs = {"type": "layers", "diff_ids": diff_ids}
    kind = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.manifest.v1+json",
        "config": put(json.dumps(config | {"rootfs": rootfs}).encode(), f"{kind}.config.v1+json"),
        "layers": [put(blob, media_type) for blob in blobs],
    }
    entry = put(json.dumps(manifest).encode(), f"{kind}.manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": "app"}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return f"oci:{folder}:app"


def good_image(folder: Path) -> str:
    return write_image(folder, [pack(GOOD), pack(OTHER)], [digest(GOOD), digest(OTHER)])


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "lazyfs", "convert", "--no-cache", *map(str, words)]


def environment(temporary: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": os.fspath(temporary)}


@pytest.fixture
def temporary(tmp_path) -> Iterator[Path]:
    folder = tmp_path / "temporary"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []


def check_failed(done: "subprocess.CompletedProcess[str]", message: str) -> None:
    """It failed, and said why in one line."""
    assert done.returncode == 1, done
    (line,) = done.stderr.splitlines()
    assert line.startswith("lazyfs convert: ")
    assert re.search(message, line), line


def fail(words: list[object], temporary: Path, message: str) -> None:
    done = subprocess.run(
        command("--quiet", *words),
        capture_output=True,
        text=True,
        check=False,
        timeout=WITHIN_S,
        env=environment(temporary),
    )
    check_failed(done, message)


def bad_checksum(tar: bytes) -> bytes:
    return tar[:512] + tar[512:612].replace(b"noise", b"nOise") + tar[612:]


BROKEN: dict[str, tuple[Callable[[], tuple[bytes, str]], str]] = {
    "truncated gzip": (lambda: (pack(GOOD)[:-1000], digest(GOOD)), "gzip stream ends early"),
    "broken gzip": (lambda: (broken(pack(GOOD)), digest(GOOD)), "broken gzip stream"),
    "bad tar checksum": (
        lambda: (pack(bad_checksum(GOOD)), digest(bad_checksum(GOOD))),
        r"tar entry at byte 512: header checksum \d+, computed \d+",
    ),
    "truncated tar": (lambda: (pack(GOOD[:9999]), digest(GOOD[:9999])), "ends at byte 9999"),
    "wrong diff ID": (lambda: (pack(GOOD), digest(OTHER)), "its diff ID is"),
    "no tar at all": (lambda: (b"hello" * 200, digest(b"hello" * 200)), "layer sha256"),
}


def broken(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(1000) + data[len(data) // 2 + 1000 :]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", BROKEN)
def test_broken_layers(tmp_path, temporary, name, layout):
    make, message = BROKEN[name]
    blob, diff_id = make()
    source = write_image(tmp_path / "in", [pack(OTHER), blob], [digest(OTHER), diff_id])
    out = tmp_path / "out"
    fail([source, f"oci:{out}:x", "--layout", layout], temporary, message)
    assert not (out / "index.json").exists()
    fail([source, f"oci-archive:{tmp_path}/out.tar:x", "--layout", layout], temporary, message)
    assert not (tmp_path / "out.tar").exists()


def test_a_blob_that_is_not_what_its_digest_says(tmp_path, temporary):
    source = good_image(tmp_path / "in")
    path = tmp_path / "in/blobs/sha256" / digest(pack(OTHER)).removeprefix("sha256:")
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1  # in the checksum at the end, behind all data
    path.write_bytes(raw)
    fail([source, f"oci:{tmp_path}/out:x"], temporary, f"layer {digest(pack(OTHER))}: wanted ")
    assert not (tmp_path / "out/index.json").exists()


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", ["1m", "4m", "7m"])
def test_a_full_disk_for_temporary_files(tmp_path, size, layout):
    """It fills up while the image is spooled, or while the blob is written."""
    source = good_image(tmp_path / "in")
    with small_disk(tmp_path / "small", size) as temporary:
        words: list[object] = [source, f"oci:{tmp_path}/out:x", "--layout", layout]
        fail(words, temporary, "No space left on device")
        assert list(temporary.iterdir()) == []
    assert not (tmp_path / "out/index.json").exists()


def test_a_full_disk_for_the_result(tmp_path, temporary):
    source = good_image(tmp_path / "in")
    with small_disk(tmp_path / "small", "4m") as place:
        fail([source, f"oci:{place}/out:x"], temporary, "No space left on device")
        assert not (place / "out/index.json").exists()
        fail([source, f"oci-archive:{place}/out.tar:x"], temporary, "No space left on device")
        assert [path.name for path in place.iterdir() if "tar" in path.name] == []


class Destination:
    """A registry that takes so many bytes of blobs and then does something else."""

    def __init__(self, takes_bytes: int, then: Reply) -> None:
        self._left = takes_bytes
        self._then = then
        self.full = trio.Event()

    def answer(self, request: Request) -> Reply:
        path = request.path
        if request.method in ("HEAD", "GET"):
            return Reply(200 if path == "/v2/" else 404)
        if request.method == "DELETE":
            return Reply(204)
        self._left -= len(request.body)
        if self._left < 0:
            self.full.set()
            return self._then
        if request.method == "PUT":
            return Reply(201)
        return Reply(202, headers={"Location": "/v2/app/blobs/uploads/1"})


@contextlib.asynccontextmanager
async def destination(
    takes_bytes: int, then: Reply
) -> AsyncIterator[tuple[ScriptedServer, Destination]]:
    registry = Destination(takes_bytes, then)
    async with scripted_server(registry.answer) as server:
        yield server, registry


def manifests(server: ScriptedServer) -> list[Request]:
    return [r for r in server.requests if r.method == "PUT" and "/manifests/" in r.path]


@pytest.mark.parametrize(
    ("then", "message"),
    [
        (Reply(507, b'{"errors": [{"code": "DENIED", "message": "quota"}]}'), "quota|507"),
        (Reply(403, b'{"errors": [{"code": "DENIED", "message": "read only"}]}'), "read only"),
        (Reply(500), "500"),
        (Reply(cut=True, length=1), ""),
    ],
)
async def test_a_registry_that_refuses_half_way(tmp_path, temporary, then, message):
    source = good_image(tmp_path / "in")
    async with destination(4 << 20, then) as (server, _):
        done = await trio.run_process(
            command("--quiet", source, f"{server.host}/app:1"),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=environment(temporary),
        )
        assert manifests(server) == []
    text = subprocess.CompletedProcess("", done.returncode, "", done.stderr.decode())
    check_failed(text, message)


async def interrupt(
    words: list[object], temporary: Path, when: Callable[[str], bool], ready: trio.Event | None
) -> None:
    """Start a conversion, and interrupt it with SIGINT once it is where it should be."""
    process = await trio.lowlevel.open_process(
        command(*words), stderr=subprocess.PIPE, env=environment(temporary)
    )
    assert process.stderr is not None
    said = ""
    with trio.fail_after(WITHIN_S):
        async with process.stderr:
            async for piece in process.stderr:
                said += piece.decode()
                if when(said):
                    break
            if ready is not None:
                await ready.wait()
            process.send_signal(signal.SIGINT)
            async for piece in process.stderr:
                said += piece.decode()
        await process.wait()
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "lazyfs: interrupted"
    assert "Traceback" not in said


@pytest.fixture(scope="module")
def large_image(tmp_path_factory) -> str:
    """Three layers that take a while to compress."""
    members = [tars.directory(b"./"), *(tars.file(b"%d" % n, NOISE) for n in range(12))]
    layers = [tars.tar(*members, tars.file(b"last", b"%d" % number)) for number in range(3)]
    folder = tmp_path_factory.mktemp("large") / "in"
    return write_image(folder, [pack(tar) for tar in layers], [digest(tar) for tar in layers])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stage", ["reading", "compressing"])
async def test_an_interrupt_with_layers_in_flight(tmp_path, temporary, large_image, stage, layout):
    words: list[object] = [
        large_image,
        f"oci:{tmp_path}/out:x",
        "--layout",
        layout,
        "--compression-level",
        "19",
    ]
    await interrupt(words, temporary, lambda said: said.count(stage) >= 2, None)
    assert not (tmp_path / "out/index.json").exists()


async def test_an_interrupt_while_a_registry_stalls(tmp_path, temporary):
    source = good_image(tmp_path / "in")
    async with destination(1 << 20, Reply(hang=True)) as (server, registry):
        words: list[object] = [source, f"{server.host}/app:1", "--timeout", "0"]
        await interrupt(words, temporary, lambda said: "pushing" in said, registry.full)
        assert manifests(server) == []

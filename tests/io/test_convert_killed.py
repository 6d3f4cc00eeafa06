"""A conversion that is killed at any write of its push: nothing wrong is served, nothing is left.

``SIGKILL`` for a real ``lazyfs convert``, at each request that writes to a real docker-registry:
before the registry has seen it, half-way through its body, and when the registry has done it.
"""

import hashlib
import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests.support.halting_proxy import HaltingProxy, Moment, halting_proxy
from tests.support.registry_server import RegistryServer, running_registry
from tests.support.tiny_image import write_layout

WITHIN_S = 300
AT_ONCE = 3
LARGE = random.Random(0).randbytes(17 << 20)
"""Pushed in two chunks of 16 MiB at most."""
SHARED = {"large": LARGE}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    """Two platforms that share a large layer."""
    folder = tmp_path_factory.mktemp("source")
    for architecture in ("amd64", "arm64"):
        write_layout(
            folder, architecture, [SHARED, {"own": architecture.encode()}], architecture, False
        )
    index = json.loads((folder / "index.json").read_text())
    entries = [
        {key: value for key, value in entry.items() if key != "annotations"}
        for entry in index["manifests"]
    ]
    raw = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": entries,
        }
    ).encode()
    digest = hashlib.sha256(raw).hexdigest()
    (folder / "blobs/sha256" / digest).write_bytes(raw)
    index["manifests"] = [
        {
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "digest": f"sha256:{digest}",
            "size": len(raw),
            "annotations": {"org.opencontainers.image.ref.name": "both"},
        }
    ]
    (folder / "index.json").write_text(json.dumps(index))
    return f"oci:{folder}:both"


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    with running_registry(tmp_path_factory.mktemp("registry")) as server:
        yield server


@dataclass
class Conversion:
    """One repository, and what this machine keeps for its conversions."""

    source: str
    repository: str
    folder: Path

    def command(self, host: str) -> list[str]:
        words = (self.source, f"{host}/{self.repository}:new", "--quiet", "--json")
        cache = ("--cache-dir", os.fspath(self.folder / "cache"))
        return [sys.executable, "-m", "lazyfs", "convert", *words, *cache]

    def environment(self) -> dict[str, str]:
        temporary = self.folder / "temporary"
        temporary.mkdir(parents=True, exist_ok=True)
        return {**os.environ, "TMPDIR": os.fspath(temporary)}

    async def run(self, host: str) -> dict:
        done = await trio.run_process(
            self.command(host),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=self.environment(),
        )
        assert done.returncode == 0, done.stderr
        result: dict = json.loads(done.stdout)
        return result

    async def kill(self, proxy: HaltingProxy) -> None:
        """Run until the proxy halts, then no further."""
        process = await trio.lowlevel.open_process(
            self.command(proxy.host), stdout=subprocess.DEVNULL, env=self.environment()
        )
        try:
            await proxy.halted.wait()
        finally:
            process.kill()
            await process.wait()

    def left_over(self) -> list[str]:
        """Files that nobody will ever want."""
        left = list((self.folder / "temporary").iterdir())
        return [path.name for path in (*left, *self.folder.rglob(".new-*"))]


class Served:
    """What a repository has, as its own files tell."""

    def __init__(self, registry: RegistryServer, repository: str) -> None:
        self._registry = registry
        self._place = registry.storage / "docker/registry/v2/repositories" / repository

    def tags(self) -> dict[str, str]:
        folder = self._place / "_manifests/tags"
        links = folder.glob("*/current/link")
        return {link.parts[-3]: link.read_text() for link in links}

    def manifests(self) -> set[str]:
        return self._links("_manifests/revisions")

    def blobs(self) -> set[str]:
        return self._links("_layers")

    def _links(self, kind: str) -> set[str]:
        return {link.read_text() for link in (self._place / kind).glob("sha256/*/link")}

    def check(self) -> None:
        """Whatever has a name is whole."""
        for digest in {*self.manifests(), *self.tags().values()}:
            document = json.loads(self._content(digest))
            for entry in document.get("manifests", ()):
                assert entry["digest"] in self.manifests(), digest
            config = [document["config"]] if "config" in document else []
            for entry in (*document.get("layers", ()), *config):
                assert entry["digest"] in self.blobs(), digest
        for digest in self.blobs():
            self._content(digest)

    def _content(self, digest: str) -> bytes:
        raw = self._registry.blob_path(digest).read_bytes()
        assert f"sha256:{hashlib.sha256(raw).hexdigest()}" == digest
        return raw


@pytest.mark.parametrize("moment", Moment, ids=lambda moment: moment.name.lower())
async def test_killed_at_each_write(source, registry, tmp_path, moment):
    whole = Conversion(source, f"{moment.name.lower()}/whole", tmp_path / "whole")
    async with halting_proxy(registry.host) as proxy:
        wanted = (await whole.run(proxy.host))["digest"]
        writes = list(proxy.writes)
    methods = [method for method, _, _ in writes]
    assert methods.count("PATCH") == 2
    manifests = [path for _, path, _ in writes if "/manifests/" in path]
    assert len(manifests) == 3
    assert manifests[-1].endswith("/new")
    points = [
        number
        for number, (_, _, length) in enumerate(writes)
        if moment is not Moment.INSIDE or length
    ]
    assert len(points) >= 9
    room = trio.Semaphore(AT_ONCE)

    async def kill_at(number: int) -> None:
        async with room:
            name = f"{moment.name.lower()}/{number}"
            await check_killed(
                Conversion(source, name, tmp_path / str(number)), registry, (number, moment), wanted
            )

    with trio.fail_after(WITHIN_S):
        async with trio.open_nursery() as nursery:
            for number in points:
                nursery.start_soon(kill_at, number)


async def check_killed(
    conversion: Conversion, registry: RegistryServer, halt_at: tuple[int, Moment], wanted: str
) -> None:
    served = Served(registry, conversion.repository)
    async with halting_proxy(registry.host) as proxy:
        proxy.halt_at = halt_at
        await conversion.kill(proxy)
        number, moment = halt_at
        path = proxy.writes[number][1]
        last = "/manifests/new" in path
        assert served.tags() == ({"new": wanted} if last and moment is Moment.AFTER else {})
    served.check()
    assert conversion.left_over() == []
    arrived = served.blobs()
    async with halting_proxy(registry.host) as proxy:
        result = await conversion.run(proxy.host)
        sent = [path for _, path, _ in proxy.writes if "digest=" in path]
    assert result["digest"] == wanted
    if "/manifests/" in path:  # all layers were there, and that was noted
        layers = [layer for image in result["images"] for layer in image["layers"]]
        assert {layer["outcome"] for layer in layers} == {"reused"}
    assert served.tags() == {"new": wanted}
    assert not [path for path in sent for digest in arrived if digest.partition(":")[2] in path]
    served.check()
    assert conversion.left_over() == []

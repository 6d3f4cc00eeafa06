"""``lazyfs verify --cached``: what mounts have kept is proven part by part, and mended."""

import hashlib
import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from lazyfs.inspect import walk
from lazyfs.mount.assemble import open_image
from lazyfs.mount.options import MountOptions
from tests.support.in_process import run_lazyfs
from tests.support.layer_builder import Layer, Verity, raw, seekable, spec_raw, spec_seekable, zstd
from tests.support.layer_layouts import Layout, flip, tree_image, write_image
from tests.support.registry_server import running_registry

WITHIN_S = 60

FORMS = {
    "containerd": lambda image: seekable(image),
    "odd chunks": lambda image: seekable(image, chunk=50_001),
    "small blocks": lambda image: seekable(image, verity=Verity(block=512)),
    "no tree": lambda image: seekable(image, verity=None),
    "no digests": lambda image: seekable(image, digests=False),
    "spec": lambda image: spec_seekable(image),
    "spec, no tree": lambda image: spec_seekable(image, verity=None),
    "spec, raw": lambda image: spec_raw(image, Verity()),
}


@pytest.fixture(scope="module")
def image() -> bytes:
    return tree_image(3_000_000)


def read_all(name: str, cache: Path, only: bytes = b"") -> None:
    """Read an image through a cache, as a mount would."""
    trio.run(_read_all, name, cache, only)


async def _read_all(name: str, cache: Path, only: bytes) -> None:
    async with open_image(name, MountOptions(cache_dir=cache)) as opened:
        async for path, node, attributes in walk(opened.tree):
            if stat.S_ISREG(attributes.mode) and path.startswith(only):
                size = attributes.size_bytes
                for offset in range(0, size, 1 << 20):
                    await opened.tree.read(node, offset, 1 << 20)


def verify(*words: object) -> tuple[int, dict]:
    done = run_lazyfs("verify", "--cached", "--json", "--quiet", *words)
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    assert document["ok"] is (done.returncode == 0)
    return done.returncode, document["layers"][0]


def kept(cache: Path, suffix: str) -> list[Path]:
    return sorted(path for path in (cache / "chunks").rglob(f"*.{suffix}") if path.is_file())


@pytest.mark.parametrize("form", FORMS)
def test_sound_then_rotten_then_mended(form: str, image: bytes, tmp_path: Path):
    layer: Layer = FORMS[form](image)
    layout = write_image(tmp_path / "image", [layer])
    cache = tmp_path / "cache"
    read_all(layout.name, cache)
    status, report = verify(layout.name, "--cache-dir", cache)
    assert (status, report["findings"]) == (0, [])
    chunks = kept(cache, "data") + kept(cache, "frame")
    count = report["checked"]["chunks"]
    assert count >= len(chunks) > 2, "chunks of zeros are one file"

    victim = chunks[len(chunks) // 2]
    flip(victim, victim.stat().st_size // 2)
    status, report = verify(layout.name, "--cache-dir", cache)
    assert status == 1
    (finding,) = report["findings"]
    assert finding["kind"] == "cache"
    assert isinstance(finding["chunk"], int)
    assert victim.exists()

    status, report = verify(layout.name, "--cache-dir", cache, "--repair")
    assert (status, len(report["findings"])) == (1, 1)
    assert finding["message"] in report["findings"][0]["message"]
    assert "(removed)" in report["findings"][0]["message"]
    assert not victim.exists()
    assert verify(layout.name, "--cache-dir", cache)[0] == 0
    read_all(layout.name, cache)
    status, report = verify(layout.name, "--cache-dir", cache)
    assert (status, report["findings"]) == (0, [])
    assert victim.exists()
    assert report["checked"]["chunks"] >= count, "the end of a mount may come before a write"


def test_a_short_chunk(image: bytes, tmp_path: Path):
    layout = write_image(tmp_path / "image", [seekable(image)])
    cache = tmp_path / "cache"
    read_all(layout.name, cache)
    victim = kept(cache, "data")[3]
    os.truncate(victim, 1000)
    status, report = verify(layout.name, "--cache-dir", cache, "--repair")
    assert status == 1
    assert "shorter" in report["findings"][0]["message"]
    assert not victim.exists()


@pytest.mark.parametrize("form", ["containerd", "small blocks", "spec"])
def test_pieces_of_the_tree(form: str, image: bytes, tmp_path: Path):
    """A rotten piece is named; what it would prove is not called rotten."""
    layer: Layer = FORMS[form](image)
    layout = write_image(tmp_path / "image", [layer])
    cache = tmp_path / "cache"
    read_all(layout.name, cache)
    if form == "spec":
        last = layer.frames[-1]  # which holds nothing but hash blocks
        digest = hashlib.sha256(layer.blob[last.offset : last.end]).hexdigest()
        (victim,) = [path for path in kept(cache, "data") if digest in path.name]
    else:
        victim = kept(cache, "tree-*")[-1]
    flip(victim, victim.stat().st_size - 100)
    status, report = verify(layout.name, "--cache-dir", cache, "--repair")
    assert status == 1
    (finding,) = report["findings"]
    assert "hash block" in finding["message"]
    assert ("chunk" if form == "spec" else "piece") in finding
    assert not victim.exists()
    status, report = verify(layout.name, "--cache-dir", cache)
    assert status == 0
    assert any("could not be checked" in note for note in report["notes"])


def test_a_little_of_an_image(image: bytes, tmp_path: Path):
    layer = seekable(image)
    layout = write_image(tmp_path / "image", [layer])
    cache = tmp_path / "cache"
    read_all(layout.name, cache, only=b"deep")
    status, report = verify(layout.name, "--cache-dir", cache)
    assert status == 0
    count = report["checked"]["chunks"]
    assert 0 < count < len(layer.frames)
    assert f"{count} of {len(layer.frames)} chunks are kept" in report["notes"]


def test_without_the_registry(image: bytes, tmp_path: Path):
    """All that it needs is kept, too."""
    layout = write_image(tmp_path / "image", [seekable(image)])
    cache = tmp_path / "cache"
    with running_registry(tmp_path / "registry") as registry:
        name = f"{registry.host}/app:1"
        copy = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", layout.name]
        subprocess.run([*copy, f"docker://{name}"], check=True, timeout=WITHIN_S)
        read_all(name, cache)
    done = run_lazyfs(
        "verify", "--cached", "--cache-dir", cache, "--timeout", "2s", "--json", "--quiet", name
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["layers"][0]["checked"]["chunks"] > 0


def test_kept_documents_that_have_rotted(image: bytes, tmp_path: Path):
    layout = write_image(tmp_path / "image", [seekable(image)])
    cache = tmp_path / "cache"
    read_all(layout.name, cache)
    documents = [path for path in (cache / "documents").rglob("*") if path.is_file()]
    assert documents
    for path in documents:
        flip(path, path.stat().st_size // 2)
    status, report = verify(layout.name, "--cache-dir", cache)
    assert (status, report["findings"]) == (0, [])


@pytest.mark.parametrize("form", [raw, zstd])
def test_a_layer_that_was_fetched_whole(
    form: Callable[[bytes], Layer], image: bytes, tmp_path: Path
):
    layout = write_image(tmp_path / "image", [form(image)])
    cache = tmp_path / "cache"
    cache.mkdir()
    status, report = verify(layout.name, "--cache-dir", cache)
    assert status == 0
    assert report["notes"][0].startswith("nothing is kept")
    read_all(layout.name, cache)
    status, report = verify(layout.name, "--cache-dir", cache)
    assert (status, report["findings"]) == (0, [])
    assert report["checked"]["chunks"] == -(-len(image) // (1 << 20))
    victim = kept(cache, "data")[1]
    flip(victim, 1000)
    status, report = verify(layout.name, "--cache-dir", cache, "--repair")
    assert status == 1
    (finding,) = report["findings"]
    assert isinstance(finding["chunk"], int)
    assert not victim.exists()
    assert verify(layout.name, "--cache-dir", cache)[0] == 0


def test_no_cache(image: bytes, tmp_path: Path):
    layout: Layout = write_image(tmp_path / "image", [seekable(image)])
    done = run_lazyfs("verify", "--cached", "--cache-dir", tmp_path / "none", layout.name)
    assert done.returncode == 1
    assert "there is no cache" in done.stderr
    assert not (tmp_path / "none").exists()
    assert run_lazyfs("verify", "--repair", layout.name).returncode == 2
    assert run_lazyfs("verify", "--cached", "erofs:x").returncode == 2

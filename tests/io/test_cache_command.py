"""``lazyfs cache``: what it lists, removes and checks, and that an image is read as before."""

import json
import os
import stat
import time
from pathlib import Path

import pytest
import trio

import lazyfs.upkeep.removal
from cache.chunkfiles import ChunkFiles
from lazyfs.inspect import walk
from lazyfs.mount.assemble import open_image
from lazyfs.mount.options import MountOptions
from lazyfs.upkeep.removal import YOUNG_S
from tests.support.cache_chunks import chunk_data, chunk_key, chunk_path
from tests.support.in_process import run_lazyfs
from tests.support.layer_builder import Layer, raw, seekable, spec_seekable, zstd
from tests.support.layer_layouts import Layout, flip, tree_image, write_image

FORMS = {
    "containerd": seekable,
    "no tree": lambda image: seekable(image, verity=None),
    "no digests": lambda image: seekable(image, digests=False),
    "spec": spec_seekable,
    "raw": raw,
    "zstd": zstd,
}


@pytest.fixture(scope="module")
def image() -> bytes:
    return tree_image(1_000_000)


@pytest.fixture(autouse=True)
def _no_other_mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are on this machine by chance are none of ours."""
    live(monkeypatch)


@pytest.fixture
def layout(tmp_path: Path, image: bytes) -> Layout:
    return write_image(tmp_path / "image", [seekable(image)])


@pytest.fixture
def cache(tmp_path: Path, layout: Layout) -> Path:
    """A cache in which all of the image is."""
    path = tmp_path / "cache"
    read_all(layout.name, path)
    return path


def read_all(name: str, cache: Path) -> list[tuple[bytes, bytes]]:
    """Read an image through a cache, as a mount would; what its files hold."""
    return trio.run(_read_all, name, cache)


async def _read_all(name: str, cache: Path) -> list[tuple[bytes, bytes]]:
    found = []
    async with open_image(name, MountOptions(cache_dir=cache)) as opened:
        async for path, node, attributes in walk(opened.tree):
            if stat.S_ISREG(attributes.mode):
                size = attributes.size_bytes
                parts = [
                    await opened.tree.read(node, offset, 1 << 20)
                    for offset in range(0, size, 1 << 20)
                ]
                found.append((path, b"".join(parts)))
    return found


def command(action: str, cache: Path, *words: object, status: int = 0) -> dict:
    done = run_lazyfs("cache", action, "--json", "--quiet", "--cache-dir", cache, *words)
    assert (done.returncode, done.stderr) == (status, "")
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document


def stored(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "chunks").rglob("*") if path.is_file())


def put_foreign(cache: Path, *numbers: int) -> None:
    """Chunks of no image, last used long ago."""
    files = ChunkFiles.open(cache, None)
    then = time.time() - YOUNG_S - 10
    for number in numbers:
        files.put(chunk_key(number).relative_path, chunk_data(number))
        os.utime(chunk_path(cache, number), (then, then))
    files.close()


# ls, du


@pytest.mark.parametrize("form", FORMS)
def test_ls_knows_every_chunk_of_an_image(form: str, image: bytes, tmp_path: Path):
    layer: Layer = FORMS[form](image)
    layout = write_image(tmp_path / "image", [layer])
    read_all(layout.name, tmp_path / "cache")
    found = command("ls", tmp_path / "cache")
    (known,) = found["images"]
    assert known["names"] == [layout.name]
    assert found["unattributed"] == {"chunks": 0, "bytes": 0}
    assert known["bytes"] == found["bytes"] > 0
    (of_layer,) = known["layers"]
    assert 0 < of_layer["chunks_cached"] <= of_layer["chunks"]
    assert found["chunks"] == len(stored(tmp_path / "cache"))


def test_ls_tells_what_belongs_to_no_image(cache: Path, layout: Layout):
    put_foreign(cache, 1, 2)
    found = command("ls", cache)
    assert found["unattributed"]["chunks"] == 2
    text = run_lazyfs("cache", "ls", "--cache-dir", cache).stdout
    assert layout.name in text
    assert "in 2 belong to no known image" in text


def test_two_images_share_chunks_and_each_has_them(cache: Path, image: bytes, tmp_path: Path):
    other = write_image(tmp_path / "other", [seekable(image), seekable(tree_image(10_000))])
    read_all(other.name, cache)
    found = command("ls", cache)
    assert len(found["images"]) == 2
    assert sum(one["bytes"] for one in found["images"]) > found["bytes"]
    assert found["unattributed"]["chunks"] == 0


def test_du_counts_every_file(cache: Path):
    kinds = command("du", cache)
    documents = sum(kept["files"] for kind, kept in kinds.items() if kind.startswith("documents/"))
    assert documents == len(list((cache / "documents").iterdir()))
    chunks = sum(kept["files"] for kind, kept in kinds.items() if kind.startswith("chunks/"))
    assert chunks == len(stored(cache))
    assert "total" in run_lazyfs("cache", "du", "--cache-dir", cache).stdout


def test_a_cache_that_is_not_there_is_not_made(tmp_path: Path):
    done = run_lazyfs("cache", "ls", "--cache-dir", tmp_path / "none")
    assert done.returncode == 1
    assert "there is no cache" in done.stderr
    assert not (tmp_path / "none").exists()


def test_a_cache_of_a_later_version_is_refused(cache: Path):
    (cache / "format").write_text("lazyfs chunk store 2\n")
    before = stored(cache)
    for words in (["ls"], ["du"], ["gc", "--unreferenced"], ["clear", "--force"], ["verify"]):
        done = run_lazyfs("cache", *words, "--cache-dir", cache)
        assert done.returncode == 1
        assert "another format" in done.stderr
    assert stored(cache) == before


# gc, clear


def test_gc_brings_the_cache_under_a_size(cache: Path, layout: Layout):
    content = read_all(layout.name, cache)
    removed = command("gc", cache, "--cache-size", "100KiB")
    assert removed["chunks"] > 0
    assert command("ls", cache)["bytes"] <= 100 << 10
    assert read_all(layout.name, cache) == content


def test_gc_removes_what_nothing_refers_to_but_not_what_is_new(cache: Path):
    put_foreign(cache, 1, 2, 3)
    os.utime(chunk_path(cache, 3))
    before = command("ls", cache)
    removed = command("gc", cache, "--unreferenced")
    assert removed["chunks"] == 2
    assert "1 chunks that nothing refers to were used just now" in removed["stays"]
    after = command("ls", cache)
    assert after["images"] == before["images"]
    assert chunk_path(cache, 3).exists()


def test_gc_removes_what_dead_processes_left(cache: Path):
    (cache / "tmp" / "dead.4096").write_bytes(bytes(100))
    (cache / "locks" / chunk_key(1).file_name).touch()
    assert command("gc", cache)["leftovers"] == 2
    assert list((cache / "tmp").iterdir()) == list((cache / "locks").iterdir()) == []


def test_clear_removes_everything(cache: Path, layout: Layout):
    (cache / "conversions").mkdir()
    (cache / "conversions" / "one").write_bytes(b"x")
    content = read_all(layout.name, cache)
    removed = command("clear", cache, "--force")
    assert stored(cache) == list((cache / "documents").iterdir()) == []
    assert removed["chunk_bytes"] > 0
    assert removed["conversions"] == 1
    assert command("du", cache)["conversions"]["files"] == 0
    assert read_all(layout.name, cache) == content


def test_clear_wants_to_be_sure(cache: Path):
    before = stored(cache)
    done = run_lazyfs("cache", "clear", "--cache-dir", cache)
    assert done.returncode == 1
    assert "--force" in done.stderr
    assert stored(cache) == before


# verify


@pytest.mark.parametrize("form", FORMS)
def test_verify_finds_and_removes_what_is_rotten(form: str, image: bytes, tmp_path: Path):
    layer: Layer = FORMS[form](image)
    layout = write_image(tmp_path / "image", [layer])
    cache = tmp_path / "cache"
    content = read_all(layout.name, cache)
    sound = command("verify", cache)
    assert sound["broken"] == []
    assert sound["chunks"] == len(stored(cache))
    assert sound["unprovable"] == 0
    victim = max(stored(cache), key=lambda path: path.stat().st_size)
    flip(victim, victim.stat().st_size // 2)
    assert len(command("verify", cache, status=1)["broken"]) == 1
    assert not victim.exists()
    assert command("verify", cache)["broken"] == []
    assert read_all(layout.name, cache) == content


def test_verify_finds_rotten_documents(cache: Path, layout: Layout):
    content = read_all(layout.name, cache)
    victims = sorted((cache / "documents").iterdir())
    for victim in victims:
        flip(victim, victim.stat().st_size - 1)
    broken = command("verify", cache, status=1)["broken"]
    assert sorted(line.split()[1] for line in broken) == [victim.name for victim in victims]
    assert list((cache / "documents").iterdir()) == []
    assert read_all(layout.name, cache) == content


def test_verify_without_documents_proves_frames_by_their_digests(image: bytes, tmp_path: Path):
    layout = write_image(tmp_path / "image", [seekable(image, verity=None)])
    cache = tmp_path / "cache"
    read_all(layout.name, cache)
    for document in (cache / "documents").iterdir():
        document.unlink()
    assert command("verify", cache)["chunks"] == len(stored(cache))
    victim = stored(cache)[0]
    flip(victim, 5)
    (broken,) = command("verify", cache, status=1)["broken"]
    assert victim.name in broken
    assert not victim.exists()


def test_what_nothing_can_prove_is_counted_and_stays(cache: Path):
    put_foreign(cache, 1)
    found = command("verify", cache)
    assert (found["unprovable"], found["broken"]) == (1, [])
    assert chunk_path(cache, 1).exists()


def test_verify_says_what_it_does(cache: Path):
    flip(stored(cache)[0], 0)
    done = run_lazyfs("cache", "verify", "--cache-dir", cache)
    assert done.returncode == 1
    assert "layer 1/1: checking" in done.stderr
    assert "1 broken and removed" in done.stdout


# What clear leaves to live mounts


def live(monkeypatch: pytest.MonkeyPatch, *documents: dict) -> None:
    """As if these mounts were there."""
    mounts = [{"mountpoint": "/mnt", "state": "mounted"} | document for document in documents]
    monkeypatch.setattr(lazyfs.upkeep.removal, "census", lambda _: mounts)


def test_clear_does_not_guess_what_a_silent_mount_uses(cache: Path, monkeypatch):
    live(monkeypatch, {"state": "silent", "cache_dir": str(cache)})
    before = stored(cache)
    done = run_lazyfs("cache", "clear", "--force", "--cache-dir", cache)
    assert done.returncode == 1
    assert "/mnt is silent" in done.stderr
    assert stored(cache) == before
    command("clear", cache, "--force", "--all")
    assert stored(cache) == []


def test_clear_minds_only_mounts_with_this_cache(cache: Path, tmp_path: Path, monkeypatch):
    live(
        monkeypatch,
        {"state": "silent", "cache_dir": str(tmp_path)},
        {"state": "dead", "cache_dir": str(cache)},
        {"cache_dir": str(cache), "layers": [{"digest": None}], "digest": None, "cache": None},
    )
    removed = command("clear", cache, "--force")
    assert removed["stays"] == []
    assert stored(cache) == list((cache / "documents").iterdir()) == []

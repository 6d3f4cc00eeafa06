"""A mount comes to life without its registry, of what was kept; and never in spite of it."""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.converted import push_and_convert
from tests.support.lazy_mounts import LazyMount, convert, forget_pages, lazyfs, mounted
from tests.support.mounting import needs_fuse
from tests.support.registry_server import running_registry
from tests.support.survival import kill_daemon, next_daemon
from tests.support.tiny_image import write_layout

pytestmark = [pytest.mark.mount, needs_fuse]

FILES = {"one": b"1" * 70_000, "folder/two": b"2" * 200_000, "three": b"3"}
OTHERS = {"one": b"other", "four": b"4"}


class OwnRegistry:
    """A registry with one image, that can be stopped; another image waits for its tag."""

    def __init__(
        self, folder: Path, stack: contextlib.ExitStack, options: tuple[str, ...] = ()
    ) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self._running = stack
        server = stack.enter_context(running_registry(folder / "registry"))
        self._layout = folder / "layout"
        write_layout(self._layout, "tar", [FILES])
        write_layout(self._layout, "other", [OTHERS])
        image = push_and_convert(self._layout, "tar", "kept", server, folder / "raw", *options)
        self.tag = image.name
        self.by_digest = f"{server.host}/kept@{image.result['digest']}"

    def stop(self) -> None:
        self._running.close()

    def move_tag(self) -> None:
        convert(f"oci:{self._layout}:other", self.tag)

    def forget_image(self) -> None:
        [repository] = self.folder.glob("registry/**/repositories/kept")
        shutil.rmtree(repository)


@pytest.fixture
def registry(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[OwnRegistry]:
    """With an image in the usual form, or by the options of ``convert`` that a test names."""
    with contextlib.ExitStack() as stack:
        yield OwnRegistry(tmp_path, stack, getattr(request, "param", ()))


def read_all(mount: LazyMount, files: dict[str, bytes] = FILES) -> None:
    forget_pages([mount.path / name for name in files])
    for name, data in files.items():
        assert (mount.path / name).read_bytes() == data


def mount_options(registry: OwnRegistry) -> tuple[str | Path, ...]:
    return ("--cache-dir", registry.cache, "--timeout", "5")


FORMS = [(), ("--no-verity",), ("--layout", "erofs-spec")]


@pytest.mark.parametrize("registry", FORMS, indirect=True, ids=["usual", "no-verity", "spec"])
def test_by_tag_and_by_digest_with_the_registry_gone(registry: OwnRegistry, tmp_path: Path):
    with mounted(registry.tag, tmp_path / "mnt", *mount_options(registry)) as mount:
        read_all(mount)
    registry.stop()
    options = mount_options(registry)
    for name in (registry.tag, registry.by_digest):
        done = lazyfs("mount", *options, name, tmp_path / "mnt")
        assert ("the registry cannot be reached" in done.stderr) == (name == registry.tag)
        [document] = json.loads(lazyfs("status", "--json", tmp_path / "mnt").stdout)
        note = document["resolution"]
        assert (note is None) == (name == registry.by_digest)
        said = lazyfs("status", tmp_path / "mnt").stdout
        assert ("the registry cannot be reached" in said) == (name == registry.tag)
        for file, data in FILES.items():
            assert (tmp_path / "mnt" / file).read_bytes() == data
        lazyfs("umount", tmp_path / "mnt")


def test_a_digest_is_not_asked_about_even_if_it_was_mounted_by_tag(
    registry: OwnRegistry, tmp_path: Path
):
    with mounted(registry.tag, tmp_path / "mnt", *mount_options(registry)) as mount:
        read_all(mount)
    options = (*mount_options(registry), "--prefetch", "none")
    with mounted(registry.by_digest, tmp_path / "mnt", *options) as mount:
        read_all(mount)
        assert mount.totals()["requests"] == 0
        assert all(host["requests"] == 0 for host in mount.status()["hosts"])


def test_a_tag_is_always_asked_about(registry: OwnRegistry, tmp_path: Path):
    with mounted(registry.tag, tmp_path / "mnt", *mount_options(registry)) as mount:
        read_all(mount)
    registry.move_tag()
    with mounted(registry.tag, tmp_path / "mnt", *mount_options(registry)) as mount:
        read_all(mount, OTHERS)
        assert mount.status()["resolution"] is None


def test_a_restarted_daemon_keeps_to_what_was_mounted(registry: OwnRegistry, tmp_path: Path):
    with mounted(registry.tag, tmp_path / "mnt", *mount_options(registry)) as mount:
        digest = mount.status()["digest"]
        registry.move_tag()
        kill_daemon(mount.folder)
        next_daemon(mount.path, mount.folder)
        read_all(mount)
        assert mount.status()["digest"] == digest
        registry.stop()
        kill_daemon(mount.folder)
        next_daemon(mount.path, mount.folder)
        read_all(mount)
        assert mount.status()["digest"] == digest


def test_what_the_registry_says_counts_if_it_says_anything(registry: OwnRegistry, tmp_path: Path):
    with mounted(registry.tag, tmp_path / "mnt", *mount_options(registry)) as mount:
        read_all(mount)
    registry.forget_image()
    done = lazyfs("mount", *mount_options(registry), registry.tag, tmp_path / "mnt", check=False)
    assert done.returncode == 1
    assert "not found" in done.stderr


def test_an_image_that_was_never_mounted_needs_its_registry(registry: OwnRegistry, tmp_path: Path):
    registry.stop()
    for name in (registry.tag, registry.by_digest):
        done = lazyfs("mount", *mount_options(registry), name, tmp_path, check=False)
        assert done.returncode == 1


@pytest.mark.parametrize("harm", ["empty", "truncated", "flipped", "folder"])
def test_rotten_documents_are_fetched_again(registry: OwnRegistry, tmp_path: Path, harm: str):
    with mounted(registry.tag, tmp_path / "mnt", *mount_options(registry)) as mount:
        read_all(mount)
    documents = list((registry.cache / "documents").iterdir())
    assert {path.name.partition("-")[0] for path in documents} == {"blob", "manifest", "name"}
    for path in documents:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.unlink()
        if harm == "folder":
            path.mkdir()
        else:
            half = data[: len(data) // 2]
            kept = {"empty": bytearray(), "truncated": half, "flipped": data}
            path.write_bytes(kept[harm])
    with mounted(registry.by_digest, tmp_path / "mnt", *mount_options(registry)) as mount:
        read_all(mount)


def forge(path: Path, content: bytes) -> None:
    """Write a document whose seal is right, as only who knows the form can."""
    path.write_bytes(hashlib.sha256(content).digest() + content)


def test_forged_documents_are_found_out_and_fetched_again(registry: OwnRegistry, tmp_path: Path):
    with mounted(registry.tag, tmp_path / "mnt", *mount_options(registry)) as mount:
        read_all(mount)
    for path in (registry.cache / "documents").iterdir():
        content = bytearray(path.read_bytes()[32:])
        if path.name.startswith("name"):
            continue
        for position in range(len(content) // 3, len(content), max(1, len(content) // 5)):
            content[position] ^= 0xFF
        forge(path, bytes(content))
    with mounted(registry.tag, tmp_path / "mnt", *mount_options(registry)) as mount:
        read_all(mount)
        assert "as it was kept" in mount.log() or mount.totals()["requests"] > 0


def test_a_cache_folder_that_cannot_be_written_only_costs_the_documents(
    registry: OwnRegistry, tmp_path: Path
):
    lazyfs("mount", "--mkdir", *mount_options(registry), registry.tag, tmp_path / "mnt")
    lazyfs("umount", tmp_path / "mnt")
    shutil.rmtree(registry.cache / "documents")
    (registry.cache / "documents").write_text("in the way")
    done = lazyfs("mount", *mount_options(registry), registry.tag, tmp_path / "mnt")
    assert "a restart may need the registry" in done.stderr
    assert (tmp_path / "mnt/three").read_bytes() == b"3"
    lazyfs("umount", tmp_path / "mnt")


def erofs_layout(folder: Path, media_type: str, blob: bytes, annotations: dict[str, str]) -> None:
    """An image of one EROFS layer, as another program might have made it."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, media_type: str, **more: object) -> dict[str, object]:
        name = hashlib.sha256(data).hexdigest()
        (blobs / name).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{name}", "size": len(data), **more}

    config = put(b"{}", "application/vnd.oci.image.config.v1+json")
    layer = put(blob, media_type, annotations=annotations)
    kind = "application/vnd.oci.image.manifest.v1+json"
    document = {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]}
    named = {"annotations": {"org.opencontainers.image.ref.name": "whole"}}
    index = {"schemaVersion": 2, "manifests": [put(json.dumps(document).encode(), kind, **named)]}
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


@pytest.mark.parametrize("harm", ["none", "note", "chunk"])
def test_a_layer_that_comes_whole_is_not_fetched_again(tmp_path: Path, harm: str):
    tree, image = tmp_path / "tree", tmp_path / "image.erofs"
    tree.mkdir()
    (tree / "file").write_bytes(os.urandom(3 << 20))
    subprocess.run(["mkfs.erofs", image, tree], check=True, capture_output=True)
    layout, blob = tmp_path / "layout", image.read_bytes()
    erofs_layout(layout, "application/vnd.erofs.layer.v1", blob, {})
    cache = tmp_path / "cache"
    options = ("--cache-dir", cache, f"oci:{layout}:whole")
    with mounted(options[2], tmp_path / "mnt", *options[:2]) as mount:
        assert mount.totals()["fetched_bytes"] == len(blob)
        kill_daemon(mount.folder)
        next_daemon(mount.path, mount.folder)
        assert mount.totals()["fetched_bytes"] == 0
        assert (mount.path / "file").read_bytes() == (tree / "file").read_bytes()
    if harm == "note":
        [note] = (cache / "documents").glob("whole-*")
        content = bytearray(note.read_bytes()[32:])
        content[100] ^= 1
        forge(note, bytes(content))
    if harm == "chunk":
        chunk = next(path for path in cache.glob("chunks/sha512/*/*") if path.stat().st_size > 4096)
        data = bytearray(chunk.read_bytes())
        data[77] ^= 1
        chunk.write_bytes(data)
    with mounted(options[2], tmp_path / "mnt", *options[:2]) as mount:
        assert (mount.totals()["fetched_bytes"] > 0) == (harm != "none")
        assert (mount.path / "file").read_bytes() == (tree / "file").read_bytes()


def test_a_local_image_that_was_replaced_is_not_gone_on_with(tmp_path: Path):
    tree, image = tmp_path / "tree", tmp_path / "image.erofs"
    tree.mkdir()
    (tree / "file").write_bytes(b"content")
    subprocess.run(["mkfs.erofs", image, tree], check=True, capture_output=True)
    with mounted(f"erofs:{image}", tmp_path / "mnt") as mount:
        kill_daemon(mount.folder)
        next_daemon(mount.path, mount.folder)
        assert (mount.path / "file").read_bytes() == b"content"
        (tree / "file").write_bytes(b"changed")
        image.unlink()
        subprocess.run(["mkfs.erofs", image, tree], check=True, capture_output=True)
        kill_daemon(mount.folder)
        with pytest.raises(OSError):
            os.statvfs(mount.path)
        assert "has been changed or replaced" in mount.status()["problem"]

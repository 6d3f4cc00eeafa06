"""Layout folders and archives, with skopeo on the other side."""

import functools
import gzip
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import trio

from registry.digest import Digest
from registry.errors import (
    ContentError,
    InvalidReferenceError,
    NotFoundError,
    RegistryError,
    TransportError,
)
from registry.interfaces import Access
from registry.manifest import Descriptor, decode_manifest
from registry.mediatype import OCI_INDEX, OCI_LAYER_TAR, OCI_LAYER_TAR_GZIP, OCI_MANIFEST
from registry.transports import open_destination, open_source
from tests.support.image_copy import copy_image, read_image
from tests.support.tiny_image import sha256, tar_layer, write_layout

FILES = [{"etc/a": b"a" * 3000}, {"b": b"b" * 2_500_000}]


def skopeo(*words: object) -> bytes:
    command = ["skopeo", "--insecure-policy", *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def names_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


async def test_reads_a_layout(tmp_path):
    image = write_layout(tmp_path / "in", "v1", FILES)
    async with open_source(f"oci:{tmp_path}/in:v1") as source:
        assert source.name == f"oci:{tmp_path}/in:v1"
        assert await read_image(source) == (image.manifest, image.config, image.layers)
        manifest = decode_manifest(image.manifest, OCI_MANIFEST)
        reader = await source.open_blob(manifest.layers[1])
        assert await reader.fetch(100, 50) == image.layers[1][100:150]
        assert await reader.fetch(reader.size_bytes, 0) == b""
        async with reader.stream(7, 2000) as pieces:
            assert b"".join([piece async for piece in pieces]) == image.layers[1][7:2007]
        for offset, length in ((-1, 2), (0, reader.size_bytes + 1)):
            with pytest.raises(ContentError, match="not inside"):
                await reader.fetch(offset, length)
        assert str(tmp_path) in reader.origin


async def test_a_relative_name_survives_a_change_of_folder(tmp_path, monkeypatch):
    image = write_layout(tmp_path / "in", "v1", FILES)
    monkeypatch.chdir(tmp_path)
    async with open_source("oci:in:v1") as source:
        monkeypatch.chdir("/")
        assert (await read_image(source))[0] == image.manifest


@pytest.mark.parametrize("transport", ["oci", "oci-archive"])
async def test_skopeo_reads_what_we_write(tmp_path, transport):
    image = write_layout(tmp_path / "in", "v1", FILES)
    target = f"{transport}:{tmp_path}/out:v2"
    async with (
        open_source(f"oci:{tmp_path}/in:v1") as source,
        open_destination(target) as destination,
    ):
        await copy_image(source, destination)
    assert json.loads(skopeo("inspect", target))["Digest"] == image.digest
    skopeo("copy", "--preserve-digests", target, f"oci:{tmp_path}/back:x")
    async with open_source(f"oci:{tmp_path}/back:x") as source:
        assert await read_image(source) == (image.manifest, image.config, image.layers)


@pytest.mark.parametrize("transport", ["oci", "oci-archive"])
async def test_we_read_what_skopeo_writes(tmp_path, transport):
    image = write_layout(tmp_path / "in", "v1", FILES)
    written = f"{transport}:{tmp_path}/out:v2"
    skopeo("copy", "--preserve-digests", f"oci:{tmp_path}/in:v1", written)
    for name in (
        written,
        f"{transport}:{tmp_path}/out",
        f"{transport}:{tmp_path}/out@{image.digest}",
    ):
        async with open_source(name) as source:
            assert await read_image(source) == (image.manifest, image.config, image.layers)


async def test_docker_archive_as_skopeo_writes_it(tmp_path):
    image = write_layout(tmp_path / "in", "v1", FILES)
    target = f"docker-archive:{tmp_path}/saved.tar"
    skopeo("copy", f"oci:{tmp_path}/in:v1", f"{target}:example.com/app:1.0")
    async with open_source(target) as source:
        raw, config, layers = await read_image(source)
        descriptor = await source.resolve()
        for missing in (source.fetch_manifest, source.open_blob):
            with pytest.raises(NotFoundError, match="holds no sha256"):
                await missing(Descriptor(OCI_MANIFEST, Digest.of(b"x"), 1))
    manifest = decode_manifest(raw, OCI_MANIFEST)
    layer = manifest.layers[0]
    async with open_source(target) as source:
        assert await source.fetch_content(layer, layer.size_bytes) == layers[0]
        with pytest.raises(ContentError, match="limit"):
            await source.fetch_content(layer, layer.size_bytes - 1)
        with pytest.raises(ContentError, match="limit"):
            await source.fetch_content(manifest.config, 10)
    assert layers == [gzip.decompress(layer) for layer in image.layers]
    assert [layer.media_type for layer in manifest.layers] == [OCI_LAYER_TAR] * 2
    assert [str(layer.digest) for layer in manifest.layers] == json.loads(config)["rootfs"][
        "diff_ids"
    ]
    assert descriptor.digest == Digest.of(raw)
    for tag in ("example.com/app:1.0", "1.0"):
        async with open_source(f"{target}:{tag}") as source:
            assert await source.resolve() == descriptor
    async with open_source(f"{target}:2.0") as source:
        with pytest.raises(NotFoundError, match=r"tags: example.com/app:1.0"):
            await source.resolve()


def save(path: Path, members: dict[str, bytes | str]) -> None:
    """A tar archive; a text is the target of a symbolic link."""
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
            else:
                member.size = len(content)
                (path.parent / "member").write_bytes(content)
                with (path.parent / "member").open("rb") as file:
                    archive.addfile(member, file)


def saved_image(layer: bytes, **changes: object) -> dict[str, bytes | str]:
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": [sha256(layer)] * 2}}).encode()
    entry = {
        "Config": "c.json",
        "RepoTags": ["app:1"],
        "Layers": ["one/layer.tar", "two/layer.tar"],
    }
    return {
        "one/layer.tar": layer,
        "two/layer.tar": "../one/layer.tar",
        "c.json": config,
        "manifest.json": json.dumps([entry | changes]).encode(),
    }


async def test_docker_archive_with_linked_layers(tmp_path):
    layer = tar_layer({"x": b"y"})
    save(tmp_path / "saved.tar", saved_image(layer))
    for name in (":app:1", ":docker.io/library/app:1", ""):
        async with open_source(f"docker-archive:{tmp_path}/saved.tar{name}") as source:
            assert (await read_image(source))[2] == [layer, layer]


async def test_docker_archive_with_compressed_layers(tmp_path):
    layer = tar_layer({"x": b"y"})
    packed = gzip.compress(layer)
    save(tmp_path / "saved.tar", saved_image(layer) | {"one/layer.tar": packed})
    async with open_source(f"docker-archive:{tmp_path}/saved.tar") as source:
        raw, _, layers = await read_image(source)
    assert decode_manifest(raw, OCI_MANIFEST).layers[0].media_type == OCI_LAYER_TAR_GZIP
    assert layers == [packed, packed]


@pytest.mark.parametrize(
    ("members", "error", "why"),
    [
        ({"one/layer.tar": tar_layer({"x": b"z"})}, ContentError, "wanted sha256:.*found"),
        ({"c.json": b'{"rootfs": {"diff_ids": []}}'}, ContentError, "2 layers, but 0 diff IDs"),
        ({"c.json": b"{}"}, ContentError, "rootfs"),
        ({"manifest.json": b"[]"}, ContentError, "not a list"),
        ({"manifest.json": b"[1]"}, ContentError, "not a JSON object"),
        ({"two/layer.tar": "../three"}, NotFoundError, "holds no 'two/layer.tar'"),
        ({"two/layer.tar": "layer.tar"}, ContentError, "too many links"),
    ],
)
async def test_broken_docker_archives(tmp_path, members, error, why):
    save(tmp_path / "saved.tar", saved_image(tar_layer({"x": b"y"})) | members)
    async with open_source(f"docker-archive:{tmp_path}/saved.tar") as source:
        with pytest.raises(error, match=why):
            await source.resolve()


async def test_docker_archive_of_several_images_wants_a_name(tmp_path):
    members = saved_image(tar_layer({"x": b"y"}))
    entry = json.loads(members["manifest.json"])[0]
    both = [entry, entry | {"RepoTags": ["app:2"]}]
    save(tmp_path / "saved.tar", members | {"manifest.json": json.dumps(both).encode()})
    async with open_source(f"docker-archive:{tmp_path}/saved.tar") as source:
        with pytest.raises(ContentError, match="app:1, app:2"):
            await source.resolve()
    async with open_source(f"docker-archive:{tmp_path}/saved.tar:2") as source:
        await source.resolve()


async def test_compressed_archives_are_named(tmp_path):
    (tmp_path / "a.tgz").write_bytes(gzip.compress(bytes(10240)))
    with pytest.raises(ContentError, match="gunzip"):
        async with open_source(f"docker-archive:{tmp_path}/a.tgz"):
            pass
    (tmp_path / "b").write_bytes(b"hello" * 1000)
    with pytest.raises(ContentError, match="not an uncompressed tar archive"):
        async with open_source(f"oci-archive:{tmp_path}/b"):
            pass
    with pytest.raises(NotFoundError, match="no such file"):
        async with open_source(f"oci-archive:{tmp_path}/missing"):
            pass


async def test_docker_archive_is_no_destination(tmp_path):
    with pytest.raises(InvalidReferenceError, match="can only be read"):
        async with open_destination(f"docker-archive:{tmp_path}/x"):
            pass
    assert list(tmp_path.iterdir()) == []


async def copy(source_name: str, target_name: str) -> Descriptor:
    async with open_source(source_name) as source, open_destination(target_name) as destination:
        return await copy_image(source, destination)


async def test_tags_of_a_layout_live_side_by_side(tmp_path):
    one = write_layout(tmp_path / "in", "one", FILES[:1])
    two = write_layout(tmp_path / "in", "two", FILES)
    out = f"oci:{tmp_path}/out"
    await copy(f"oci:{tmp_path}/in:one", f"{out}:a")
    await copy(f"oci:{tmp_path}/in:two", f"{out}:b")
    await copy(f"oci:{tmp_path}/in:one", out)
    for tag, image in (("a", one), ("b", two), ("", one)):
        async with open_source(f"{out}:{tag}" if tag else out) as source:
            assert (await read_image(source))[0] == image.manifest
    await copy(f"oci:{tmp_path}/in:two", f"{out}:a")
    await copy(f"oci:{tmp_path}/in:two", out)
    index = json.loads((tmp_path / "out/index.json").read_bytes())
    names = [
        e.get("annotations", {}).get("org.opencontainers.image.ref.name")
        for e in index["manifests"]
    ]
    assert sorted(names, key=str) == [None, "a", "b"]
    assert {e["digest"] for e in index["manifests"]} == {two.digest}
    assert not [name for name in names_of(tmp_path / "out") if "partial" in name]


async def test_a_name_that_means_several_or_none(tmp_path):
    write_layout(tmp_path / "in", "one", FILES[:1])
    write_layout(tmp_path / "in", "two", FILES)
    write_layout(tmp_path / "in", "two", FILES[1:])
    for tag, error, why in (
        ("", NotFoundError, "tags: 'one', 'two'"),
        (":three", NotFoundError, "tags: 'one'"),
        (":two", ContentError, "2 images"),
    ):
        async with open_source(f"oci:{tmp_path}/in{tag}") as source:
            with pytest.raises(error, match=why):
                await source.resolve()


async def test_archive_is_deterministic_and_replaced_in_one_step(tmp_path):
    write_layout(tmp_path / "in", "one", FILES)
    (tmp_path / "b.tar").write_bytes(b"what was there")
    await copy(f"oci:{tmp_path}/in:one", f"oci-archive:{tmp_path}/a.tar:x")
    await copy(f"oci-archive:{tmp_path}/a.tar:x", f"oci-archive:{tmp_path}/b.tar:x")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", "b.tar", "in"]


async def test_nothing_is_left_of_a_failed_archive(tmp_path):
    async def fail() -> None:
        async with open_destination(f"oci-archive:{tmp_path}/a.tar:x") as destination:
            await destination.push_manifest(b"{}", Descriptor("x/y", Digest.of(b"{}"), 2))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    with pytest.raises(ContentError, match="no image was written"):
        async with open_destination(f"oci-archive:{tmp_path}/a.tar:x"):
            pass
    with trio.CancelScope() as scope:
        async with open_destination(f"oci-archive:{tmp_path}/a.tar:x"):
            scope.cancel()
            await trio.sleep_forever()
    assert list(tmp_path.iterdir()) == []
    write_layout(tmp_path / "in", "one", FILES)
    with trio.CancelScope() as scope:
        async with (
            open_source(f"oci:{tmp_path}/in:one") as source,
            open_destination(f"oci-archive:{tmp_path}/a.tar:x") as destination,
        ):
            await copy_image(source, destination)
            scope.cancel()
    assert scope.cancelled_caught
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


async def test_blobs_are_written_whole_or_not_at_all(tmp_path):
    async with open_destination(f"oci:{tmp_path}/out:x") as destination:
        wanted = Descriptor("x/y", Digest.of(b"content"), 7)

        async def give(*pieces: bytes):
            for piece in pieces:
                yield piece

        for pieces, why in (
            ((b"conten", b"T"), "wanted sha256"),
            ((b"content", b"!"), "longer than"),
            ((b"cont",), "4 bytes, wanted 7"),
        ):
            with pytest.raises(ContentError, match=why):
                await destination.push_blob(wanted, functools.partial(give, *pieces))
            assert not await destination.has_blob(wanted)
        assert names_of(tmp_path / "out") == {"oci-layout"}
        await destination.push_blob(wanted, lambda: give(b"con", b"", b"tent"))
        assert await destination.has_blob(wanted)
        # It is there now, so nobody asks for the bytes again.
        await destination.push_blob(wanted, functools.partial(give, b"other"))


async def test_cancelled_write_leaves_nothing(tmp_path):
    async with open_destination(f"oci:{tmp_path}/out:x") as destination:
        with trio.CancelScope() as scope:

            async def stuck():
                yield b"x" * (2 << 20)
                scope.cancel()
                await trio.sleep_forever()

            await destination.push_blob(Descriptor("x/y", Digest.of(b""), 9 << 20), stuck)
        assert scope.cancelled_caught
    assert names_of(tmp_path / "out") == {"oci-layout"}


async def test_a_folder_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ContentError, match="something else than an OCI layout"):
        async with open_destination(f"oci:{tmp_path}:x"):
            pass
    assert names_of(tmp_path) == {"file"}
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion": "9"}')
    with pytest.raises(ContentError, match="version"):
        async with open_destination(f"oci:{tmp_path}:x"):
            pass


async def test_a_locked_layout_is_waited_for(tmp_path, autojump_clock):
    async with open_destination(f"oci:{tmp_path}/out:x", Access(timeout_s=5)) as destination:
        holder = subprocess.Popen(
            ["flock", tmp_path / "out", "sh", "-c", "echo held; read line"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(TransportError, match="holds its lock"):
                await destination.tag(Descriptor(OCI_INDEX, Digest.of(b"{}"), 2), b"{}")
            holder.communicate(b"\n")
        await destination.tag(Descriptor(OCI_INDEX, Digest.of(b"{}"), 2), b"{}")


async def test_destination_digest_must_come_true(tmp_path):
    name = f"oci:{tmp_path}/out:x@{Digest.of(b'other')}"
    async with open_destination(name) as destination:
        with pytest.raises(ContentError, match="the image has digest"):
            await destination.tag(Descriptor(OCI_MANIFEST, Digest.of(b"{}"), 2), b"{}")


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


async def test_broken_layouts(tmp_path):
    image = write_layout(tmp_path / "in", "v1", FILES)
    manifest = decode_manifest(image.manifest, OCI_MANIFEST)
    blobs = tmp_path / "in/blobs/sha256"
    name = f"oci:{tmp_path}/in:v1"
    async with open_source(name) as source:
        descriptor = await source.resolve()
        with pytest.raises(ContentError, match="limit of 10"):
            await source.fetch_content(manifest.config, 10)
        flip(blobs / manifest.config.digest.encoded, 20)
        with pytest.raises(ContentError, match=manifest.config.digest.encoded):
            await source.fetch_content(manifest.config, 1 << 20)
        flip(blobs / descriptor.digest.encoded, 20)
        with pytest.raises(ContentError, match="found sha256"):
            await source.fetch_manifest(descriptor)
        layer = blobs / manifest.layers[0].digest.encoded
        reader = await source.open_blob(manifest.layers[0])
        os.truncate(layer, 10)
        with pytest.raises(TransportError, match="was cut"):
            await reader.fetch(0, reader.size_bytes)
        with pytest.raises(ContentError, match="10 bytes, wanted"):
            await source.open_blob(manifest.layers[0])
        layer.unlink()
        with pytest.raises(NotFoundError, match="no such file"):
            await source.open_blob(manifest.layers[0])
        os.mkfifo(layer)
        with pytest.raises(ContentError, match="not a regular file"):
            await source.open_blob(manifest.layers[0])
        layer.unlink()
        layer.mkdir()
        with pytest.raises(RegistryError, match=r"not a regular file|directory"):
            await source.open_blob(manifest.layers[0])
        (tmp_path / "in/index.json").write_text("{")
        with pytest.raises(ContentError, match="not JSON"):
            await source.resolve()
    shutil.rmtree(tmp_path / "in")
    async with open_source(name) as source:
        with pytest.raises(NotFoundError, match="not an OCI layout"):
            await source.resolve()


async def test_a_replaced_file_goes_on_giving_what_it_had(tmp_path):
    image = write_layout(tmp_path / "in", "v1", FILES)
    manifest = decode_manifest(image.manifest, OCI_MANIFEST)
    async with open_source(f"oci:{tmp_path}/in:v1") as source:
        reader = await source.open_blob(manifest.layers[0])
        path = tmp_path / "in/blobs/sha256" / manifest.layers[0].digest.encoded
        (tmp_path / "other").write_bytes(bytes(reader.size_bytes))
        (tmp_path / "other").replace(path)
        assert await reader.fetch(0, reader.size_bytes) == image.layers[0]


WRITER = """
import sys
import trio
from registry.digest import Digest
from registry.manifest import Descriptor
from registry.transports import open_destination

async def data():
    yield b"x" * 2_000_000
    print("writing", flush=True)
    await trio.sleep_forever()

async def write():
    async with open_destination(sys.argv[1]) as destination:
        wanted = Descriptor("application/octet-stream", Digest.of(b""), 4_000_000)
        await destination.push_blob(wanted, data)

trio.run(write)
"""


def partial(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*.partial")}


@pytest.mark.parametrize("transport", ["oci", "oci-archive"])
def test_what_a_killed_writer_left_goes_when_somebody_writes(tmp_path, transport):
    write_layout(tmp_path / "in", "v1", FILES)
    target = f"{transport}:{tmp_path}/[out]/x:v1"
    (tmp_path / "[out]").mkdir()
    left: list[set[str]] = []
    processes = []
    try:
        for _ in range(2):
            writer = subprocess.Popen(
                [sys.executable, "-c", WRITER, target], stdout=subprocess.PIPE, text=True
            )
            processes.append(writer)
            assert writer.stdout is not None
            assert writer.stdout.readline() == "writing\n"
            left.append(partial(tmp_path) - set().union(*left))
            assert left[-1]
        for name in set().union(*left):
            os.utime(tmp_path / name, (100, 100))
        processes[0].kill()
        processes[0].wait()
        trio.run(copy, f"oci:{tmp_path}/in:v1", target)
        assert partial(tmp_path) == left[1]
    finally:
        for writer in processes:
            writer.kill()
            writer.communicate()
    trio.run(copy, f"oci:{tmp_path}/in:v1", target)
    assert partial(tmp_path) == set()


def test_a_layout_whose_first_file_was_not_finished_can_be_written(tmp_path):
    write_layout(tmp_path / "in", "v1", FILES)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.oci-layout.0123456789abcdef.partial").write_bytes(b"{")
    trio.run(copy, f"oci:{tmp_path}/in:v1", f"oci:{tmp_path}/out:v1")

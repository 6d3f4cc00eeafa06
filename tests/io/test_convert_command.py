"""``lazyfs convert`` as a person runs it: real archives, a real registry, other tools around it."""

import hashlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.support import verity_oracle
from tests.support.registry_server import running_registry
from tests.support.tiny_image import write_layout

WITHIN_S = 120
LAYERS = [
    {"etc/hosts": b"localhost\n", "data/a": bytes(range(256)) * 2000, "data/b": b"b" * 300_000},
    {"etc/.wh.hosts": b"", "data/c": b"c" * 5000},
]


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "lazyfs", "convert", *map(str, words)]


def convert(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words),
        capture_output=True,
        text=True,
        check=False,
        timeout=WITHIN_S,
        env={**os.environ, **environment},
    )


def converted(*words: object) -> dict:
    """The summary of a conversion that must work."""
    done = convert(*words, "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    summary: dict = json.loads(done.stdout)
    return summary


def tool(*words: object) -> bytes:
    return subprocess.run(
        [str(word) for word in words], check=True, capture_output=True, timeout=WITHIN_S
    ).stdout


@pytest.fixture
def source(tmp_path):
    """An ordinary image in a layout folder."""
    write_layout(tmp_path / "in", "app", LAYERS)
    return f"oci:{tmp_path}/in:app"


def blob(folder: Path, digest: str) -> Path:
    return folder / "blobs" / digest.replace(":", "/")


def test_layout_to_layout(tmp_path, source):
    out = tmp_path / "out"
    summary = converted(source, f"oci:{out}:lazy", "--chunk-size", "64KiB")
    inspected = json.loads(tool("skopeo", "inspect", "--raw", f"oci:{out}:lazy"))
    (image,) = summary["images"]
    assert image["platform"] == "linux/amd64"
    for layer, descriptor in zip(image["layers"], inspected["layers"], strict=True):
        assert descriptor["mediaType"] == "application/vnd.erofs.layer.v1+zstd"
        assert descriptor["digest"] == layer["digest"]
        assert descriptor["annotations"] == layer["annotations"]
        path = blob(out, layer["digest"])
        raw = tool("zstd", "-dc", path)
        assert len(raw) == layer["imageSize"]
        frames = re.search(rb"Zstandard Frames: (\d+)", tool("zstd", "-lv", path))
        assert frames is not None
        assert int(frames[1]) == layer["chunks"] == -(-len(raw) // 65536)
        offset = int(layer["annotations"]["dev.containerd.erofs.dmverity.offset"])
        root = layer["annotations"]["dev.containerd.erofs.dmverity.root_digest"]
        device = tmp_path / "layer.erofs"
        device.write_bytes(raw + path.read_bytes()[offset + 8 :])
        assert len(raw) % 4096 == 0
        assert verity_oracle.accepts(device, len(raw), bytes.fromhex(root.split(":")[1]))
    config = json.loads(tool("skopeo", "inspect", "--config", "--raw", f"oci:{out}:lazy"))
    assert config["rootfs"]["diff_ids"] == [layer["diffID"] for layer in image["layers"]]
    assert config["os.features"] == ["erofs"]


def test_every_way_in_and_out_gives_the_same_image(tmp_path, source):
    """docker-archive, oci, oci-archive, and a registry; one job and several."""
    with running_registry(tmp_path / "registry") as registry:
        docker, archive = f"docker-archive:{tmp_path}/d.tar", f"oci-archive:{tmp_path}/o.tar:app"
        remote = f"{registry.host}/app:1"
        insecure = "--dest-tls-verify=false"
        tool("skopeo", "copy", source, f"{docker}:app:1")
        tool("skopeo", "copy", source, archive)
        tool("skopeo", "copy", insecure, source, f"docker://{remote}")
        results = [
            converted(source, f"oci:{tmp_path}/x:x", "--jobs", 1),
            converted(archive, f"oci-archive:{tmp_path}/y.tar:y", "--jobs", 4),
            converted(remote, f"{registry.host}/lazy/app:2", "--jobs", 3),
            converted(f"docker://{remote}", f"oci:{tmp_path}/z:z"),
            converted(docker, f"oci:{tmp_path}/w:w"),
        ]
        layers = [
            [layer["digest"] for layer in result["images"][0]["layers"]] for result in results
        ]
        assert layers.count(layers[0]) == len(results)
        assert len({result["digest"] for result in results[:4]}) == 1
        inspected = json.loads(
            tool("skopeo", "inspect", "--tls-verify=false", f"docker://{registry.host}/lazy/app:2")
        )
        assert inspected["Digest"] == results[2]["digest"]
        assert inspected["Layers"] == layers[0]
        copied = tmp_path / "copied"
        tool(
            "skopeo", "copy", "--src-tls-verify=false", "--preserve-digests",
            f"docker://{registry.host}/lazy/app:2", f"oci:{copied}:c",
        )  # fmt: skip
        for digest in layers[0]:
            assert blob(copied, digest).read_bytes() == blob(tmp_path / "x", digest).read_bytes()
        again = converted(f"{registry.host}/lazy/app:2", f"{registry.host}/other/app:3")
        assert [layer["outcome"] for layer in again["images"][0]["layers"]] == ["kept", "kept"]
        assert again["digest"] == results[2]["digest"]


@pytest.mark.mount
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_the_kernel_mounts_what_zstd_decodes(tmp_path, source):
    out = tmp_path / "out"
    summary = converted(source, f"oci:{out}:lazy")
    point = tmp_path / "mnt"
    point.mkdir()
    for number, layer in enumerate(summary["images"][0]["layers"]):
        image = tmp_path / f"{number}.erofs"
        image.write_bytes(tool("zstd", "-dc", blob(out, layer["digest"])))
        tool("fsck.erofs", image)
        tool("mount", "-t", "erofs", "-o", "ro,loop", image, point)
        try:
            files = {name: data for name, data in LAYERS[number].items() if ".wh." not in name}
            for name, data in files.items():
                assert (point / name).read_bytes() == data
            if number == 1:
                whiteout = (point / "etc/hosts").stat()
                assert (whiteout.st_mode & 0o170000, whiteout.st_rdev) == (0o020000, 0)
        finally:
            tool("umount", point)


def test_all_platforms_through_a_registry(tmp_path):
    folder = tmp_path / "in"
    for architecture in ("amd64", "arm64"):
        write_layout(
            folder, architecture, [LAYERS[0], {"arch": architecture.encode()}], architecture
        )
    entries = json.loads((folder / "index.json").read_text())["manifests"]
    for entry in entries:
        del entry["annotations"]
    index = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": entries,
        }
    ).encode()
    with running_registry(tmp_path / "registry") as registry:
        digest = hashlib.sha256(index).hexdigest()
        (folder / "blobs/sha256" / digest).write_bytes(index)
        top = {
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "digest": f"sha256:{digest}",
            "size": len(index),
            "annotations": {"org.opencontainers.image.ref.name": "multi"},
        }
        (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
        target = f"{registry.host}/multi:1"
        summary = converted(f"oci:{folder}:multi", target)
        assert [image["platform"] for image in summary["images"]] == ["linux/amd64", "linux/arm64"]
        raw = json.loads(
            tool("skopeo", "inspect", "--tls-verify=false", "--raw", f"docker://{target}")
        )
        assert [entry["platform"] for entry in raw["manifests"]] == [
            {"architecture": architecture, "os": "linux", "os.features": ["erofs"]}
            for architecture in ("amd64", "arm64")
        ]
        tool(
            "skopeo",
            "copy",
            "--all",
            "--src-tls-verify=false",
            f"docker://{target}",
            f"oci:{tmp_path}/all:a",
        )
        single = converted(
            f"oci:{folder}:multi", f"{registry.host}/single:1", "--platform", "linux/arm64"
        )
        assert single["digest"] == summary["images"][1]["digest"]


def test_summary_and_progress_for_a_person(tmp_path, source):
    done = convert(source, f"oci:{tmp_path}/out:a")
    assert done.returncode == 0
    assert "layer 1/2" in done.stderr
    assert done.stderr.count(": done") == 2
    assert re.search(r"layer 1: converted, .* KiB -> image .* -> blob .* in 2 chunks", done.stdout)
    assert done.stdout.strip().splitlines()[-1].startswith(f"oci:{tmp_path}/out:a  sha256:")
    quiet = convert(source, f"oci:{tmp_path}/out:b", "--quiet")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["oci:{0}/none", "oci:{0}/out"], 1, "no such file"),
        (["oci:{0}/in:other", "oci:{0}/out"], 1, "no such image"),
        (["oci:{0}/in:app", "docker-archive:{0}/x.tar"], 1, "can only be read"),
        (["oci:{0}/in:app", "oci:{0}/out", "--platform", "linux/s390x"], 1, "not for linux/s390x"),
        (["oci:{0}/in:app", "oci:{0}/out", "--chunk-size", "100"], 2, "chunk size 100"),
        (["oci:{0}/in:app", "oci:{0}/out", "--chunk-size", "huge"], 2, "not a size"),
        (["oci:{0}/in:app", "oci:{0}/out", "--platform", "a/b/c/d"], 2, "not a platform"),
        (["oci:{0}/in:app"], 2, "required: DST"),
        (["oci:{0}/in:app", "erofs:{0}/out"], 2, "local EROFS images can only be read"),
        (["erofs:{0}/none", "oci:{0}/out"], 1, "no such file"),
        (["erofs:", "oci:{0}/out"], 1, "write erofs:FILE"),
    ],
)
def test_failures_are_one_line(tmp_path, source, words, status, message):
    del source
    done = convert(*(word.format(tmp_path) for word in words))
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    if status == 1:
        (line,) = [line for line in done.stderr.splitlines() if not line.startswith("layer ")]
        assert line.startswith("lazyfs convert: ")
    assert not (tmp_path / "out/index.json").exists()


def test_a_broken_layer_leaves_no_name_and_no_file(tmp_path, source):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    manifest = json.loads(tool("skopeo", "inspect", "--raw", source))
    path = blob(tmp_path / "in", manifest["layers"][0]["digest"])
    path.write_bytes(path.read_bytes()[:-30] + bytes(30))
    done = convert(source, f"oci:{tmp_path}/out:a", TMPDIR=os.fspath(temporary))
    assert done.returncode == 1
    assert f"layer {manifest['layers'][0]['digest']}: wanted" in done.stderr
    assert list(temporary.iterdir()) == []
    assert not (tmp_path / "out/index.json").exists()
    broken = convert(source, f"oci-archive:{tmp_path}/out.tar:a", TMPDIR=os.fspath(temporary))
    assert broken.returncode == 1
    assert [entry.name for entry in tmp_path.iterdir() if "out.tar" in entry.name] == []


def test_an_interrupt_ends_at_once_and_leaves_nothing(tmp_path):
    """A registry that takes a connection and never answers."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(WITHIN_S)
        name = f"127.0.0.1:{server.getsockname()[1]}/never:1"
        process = subprocess.Popen(
            command(name, f"oci-archive:{tmp_path}/out.tar:a", "--timeout", "0"),
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": os.fspath(temporary)},
        )
        with server.accept()[0]:
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 130
    assert errors == "lazyfs: interrupted\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tmp"]
    assert list(temporary.iterdir()) == []


def test_a_dead_registry_is_an_error_within_the_timeout(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        name = f"127.0.0.1:{server.getsockname()[1]}/never:1"
        done = convert(name, f"oci:{tmp_path}/out:a", "--timeout", "200ms")
    assert done.returncode == 1
    assert done.stderr.startswith("lazyfs convert: ")
    assert len(done.stderr.splitlines()) == 1


def test_an_archive_with_several_members_is_read_in_place(tmp_path, source):
    """The docker-archive has other members before and behind the layers."""
    archive = tmp_path / "app.tar"
    tool("skopeo", "copy", source, f"docker-archive:{archive}:app:1")
    with tarfile.open(archive) as members:
        assert "manifest.json" in members.getnames()
    summary = converted(f"docker-archive:{archive}", f"oci:{tmp_path}/out:a")
    assert len(summary["images"][0]["layers"]) == 2


def test_bars_on_a_terminal(tmp_path, source):
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        process = subprocess.Popen(
            command(source, f"oci:{tmp_path}/out:a"), stdout=subprocess.DEVNULL, stderr=theirs
        )
        os.close(theirs)
        shown = b""
        try:
            while piece := screen.read(4096):
                shown += piece
        except OSError:
            pass  # what a terminal says when its other end is closed
        assert process.wait(timeout=WITHIN_S) == 0
    assert b"layer 1/2" in shown
    assert b"\x1b[" in shown

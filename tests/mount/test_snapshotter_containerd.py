"""Lazy layers under Debian's containerd: what a user does, and what breaks while they do it."""

import gzip
import hashlib
import io
import json
import signal
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from lazyfs.snapshotter.api import cri_pb2
from lazyfs.snapshotter.model import LAZY, WHY
from tests.support.containerd import Rig, containerd_rig
from tests.support.converted import ConvertedImage, push, push_and_convert
from tests.support.images import TAG, run, write_layout
from tests.support.mounting import folder_of, kill_processes, needs_fuse
from tests.support.registry_server import RegistryServer
from tests.support.small_layers import make_layers
from tests.support.survival import kill_daemon, next_daemon
from tests.support.tiny_image import tar_layer

pytestmark = [pytest.mark.mount, needs_fuse]

TEN = [f"ten{number}" for number in range(10)]
LARGE = "/data/large"


@pytest.fixture(scope="module")
def image(registry: RegistryServer, work_folder: Path) -> ConvertedImage:
    layout = work_folder / "containerd-layout"
    write_layout(layout, make_layers(work_folder / "containerd-layers"))
    return push_and_convert(layout, TAG, "ctd", registry, work_folder / "raw-ctd")


@pytest.fixture(scope="module")
def mixed(image: ConvertedImage, registry: RegistryServer, work_folder: Path) -> str:
    """The same image with a layer more, which is a tar."""
    layout, name = work_folder / "mixed-layout", f"{registry.host}/ctd:mixed"
    run(
        "skopeo",
        "copy",
        "-q",
        "--src-tls-verify=false",
        f"docker://{image.name}",
        f"oci:{layout}:x",
    )
    blobs = layout / "blobs/sha256"

    def put(data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    index = json.loads((layout / "index.json").read_text())
    entry = index["manifests"][0]
    manifest = json.loads((blobs / entry["digest"].partition(":")[2]).read_text())
    config = json.loads((blobs / manifest["config"]["digest"].partition(":")[2]).read_text())
    tar = tar_layer({"data/of-tar": b"unpacked", "data/.wh.third": b""})
    config["rootfs"]["diff_ids"].append("sha256:" + hashlib.sha256(tar).hexdigest())
    manifest["config"] |= put(json.dumps(config).encode())
    kind = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip"}
    manifest["layers"].append(kind | put(gzip.compress(tar, mtime=0)))
    entry |= put(json.dumps(manifest).encode())
    (layout / "index.json").write_text(json.dumps(index))
    push(layout, "x", name)
    return name


@pytest.fixture
def rig() -> Iterator[Rig]:
    with containerd_rig() as made:
        yield made


def content(rig: Rig, namespace: str = "default") -> set[str]:
    return set(rig.ctr("--namespace", namespace, "content", "ls", "-q").stdout.split())


def test_an_image_from_pull_to_removal(rig: Rig, image: ConvertedImage):
    pulled = rig.pull(image.name)
    assert (pulled["lazy"], pulled["unpacked"]) == (3, 0)
    # Manifest and configuration are all that containerd has of it.
    assert len(content(rig)) == 2
    assert len(rig.layer_mounts()) == 3
    before = sum(rig.usage(name) for name in rig.snapshots())
    rig.start(image.name, "one")
    assert rig.exec("one", "/bin/cat", "/data/changed") == "the new one"
    assert rig.exec("one", "/bin/ls", "/hidden", "/data") == (
        "/data:\nchanged\nfirst\nlarge\nmarked\nsecond\nthird\n\n/hidden:\nnew\n"
    )
    rig.exec(
        "one",
        "/bin/sh",
        "-c",
        f"cat {LARGE} > /copy; echo w > /data/written; cat {LARGE} >/dev/null",
    )
    after = sum(rig.usage(name) for name in rig.snapshots() if name != "one")
    assert before < after <= sum(path.stat().st_size for path in image.raw)
    assert 3 << 20 < rig.usage("one") < 4 << 20

    # What was written becomes a layer: containerd's own diff, and a snapshot of it.
    rig.exec("one", "/bin/busybox", "rm", "/data/first")
    with tarfile.open(fileobj=io.BytesIO(rig.diff("one"))) as changes:
        assert {"copy", "data/written", "data/.wh.first"} <= set(changes.getnames())
        assert "data/large" not in changes.getnames()
    rig.stop("one")
    names = rig.snapshots()
    assert len(names) == 3
    rig.ctr("snapshots", "--snapshotter", "lazyfs", "prepare", "work", names[-1])
    rig.ctr("snapshots", "--snapshotter", "lazyfs", "commit", "kept", "work")
    rig.ctr("snapshots", "--snapshotter", "lazyfs", "rm", "kept")

    rig.ctr("images", "rm", "--sync", image.name)
    assert rig.snapshots() == []
    assert rig.layer_mounts() == []
    assert list((rig.root / "snapshots").iterdir()) == []
    assert list((rig.root / "layers").iterdir()) == []
    assert content(rig) == set()


def test_ten_containers_share_one_mount_of_each_layer(rig: Rig, image: ConvertedImage):
    rig.pull(image.name)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda name: rig.start(image.name, name), TEN))
        rig.exec(TEN[0], "/bin/sh", "-c", "echo mine > /data/changed")
        found = list(threads.map(lambda name: rig.exec(name, "/bin/cat", "/data/changed"), TEN))
    assert found == ["mine\n"] + 9 * ["the new one"]
    assert len(rig.layer_mounts()) == 3


def test_lazy_layers_below_one_that_is_not(rig: Rig, mixed: str, image: ConvertedImage):
    pulled = rig.pull(mixed)
    assert (pulled["lazy"], pulled["unpacked"]) == (3, 1)
    said = rig.run(
        mixed, "m", "/bin/sh", "-c", "cat /data/of-tar /data/changed; [ ! -e /data/third ]"
    )
    assert said == "unpackedthe new one"
    infos = [
        json.loads(rig.ctr("snapshots", "--snapshotter", "lazyfs", "info", name).stdout)["Labels"]
        for name in rig.snapshots()
    ]
    assert sorted(labels[LAZY] for labels in infos) == ["false", "true", "true", "true"]
    [why] = [labels[WHY] for labels in infos if labels[LAZY] == "false"]
    assert "tar+gzip is not EROFS" in why
    assert "is unpacked" in rig.snapshotter.log.read_text()
    # The lazy layers are those of the other image, and are there.
    assert rig.pull(image.name)["there"] == 3


def test_containers_go_on_while_our_processes_die(rig: Rig, image: ConvertedImage):
    rig.pull(image.name)
    rig.start(image.name, "one")

    def read() -> str:
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return rig.exec("one", "/bin/busybox", "sha256sum", LARGE)

    whole = read()
    rig.snapshotter.end(signal.SIGKILL)
    assert read() == whole
    rig.restart_snapshotter()
    kill_daemon(folder_of(rig.store))
    assert read() == whole
    next_daemon(rig.store, folder_of(rig.store))
    rig.containerd.end(signal.SIGKILL)
    rig.containerd.start()
    assert read() == whole
    assert rig.run(image.name, "two", "/bin/cat", "/data/changed") == "the new one"

    # Supervisor and daemon together: what they served is gone, and new containers are well.
    kill_processes(folder_of(rig.store))
    assert rig.run(image.name, "three", "/bin/cat", "/data/changed") == "the new one"
    assert rig.run(image.name, "four", "/bin/busybox", "sha256sum", LARGE) == whole
    rig.stop("one")
    assert "had died: starting another one" in rig.snapshotter.log.read_text()


def test_one_layer_that_is_gone_stops_neither_the_start_nor_the_others(
    rig: Rig, image: ConvertedImage, registry: RegistryServer, work_folder: Path
):
    other = f"{registry.host}/ctd-other:lazy"
    run("skopeo", "copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false",
        f"docker://{image.name}", f"docker://{other}")  # fmt: skip
    rig.pull(other)
    rig.snapshotter.end()
    kill_processes(folder_of(rig.store))
    sick = min((rig.root / "layers").glob("*.life")).stem
    # A file in the way of its mount.
    for place in rig.layer_mounts():
        run("umount", "--lazy", place)
    (rig.root / "layers" / sick).rmdir()
    (rig.root / "layers" / sick).write_text("in the way")
    rig.restart_snapshotter()
    names = rig.snapshots()
    assert len(names) == 3
    failed = rig.ctr("run", "--rm", "--snapshotter", "lazyfs", other, "x", "/bin/true", check=False)
    assert failed.returncode != 0
    (rig.root / "layers" / sick).unlink()
    assert rig.run(other, "y", "/bin/cat", "/data/changed") == "the new one"


def pull_by_cri(rig: Rig, name: str) -> str:
    with grpc.insecure_channel(f"unix:{rig.folder}/c.sock") as channel:
        call = channel.unary_unary(
            "/runtime.v1.ImageService/PullImage",
            cri_pb2.PullImageRequest.SerializeToString,
            cri_pb2.PullImageResponse.FromString,
        )
        request = cri_pb2.PullImageRequest(image=cri_pb2.ImageSpec(image=name))
        return call(request, timeout=100).image_ref


def test_cri_of_this_containerd(rig: Rig, image: ConvertedImage):
    """The rows of the table in docs/containerd.md about 1.6: tar images yes, EROFS by ctr-pull."""
    tar = image.name.replace(":lazy", ":tar")
    assert pull_by_cri(rig, tar).startswith("sha256:")
    assert rig.layer_mounts() == []
    assert "not EROFS" in rig.snapshotter.log.read_text()
    with pytest.raises(grpc.RpcError, match="no processor for media-type"):
        pull_by_cri(rig, image.name)
    rig.pull(image.name, "--namespace", "k8s.io")
    assert len(rig.layer_mounts()) == 3

"""The snapshots service over gRPC, as containerd sees it, with layers that only pretend."""

import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from lazyfs.errors import MountError
from lazyfs.snapshotter.api import snapshots_pb2 as api
from lazyfs.snapshotter.errors import MissingSnapshotError, SnapshotError
from lazyfs.snapshotter.layers import Found
from lazyfs.snapshotter.metadata import Metadata
from lazyfs.snapshotter.metrics import MetricsServer
from lazyfs.snapshotter.model import LAZY, TARGET, WHY, Kind, LayerRequest, Usage
from lazyfs.snapshotter.server import SERVICE, SnapshotsService, start_server
from lazyfs.snapshotter.snapshotter import Snapshotter
from tests.support.scraping import scrape

LAZY_LAYER, TAR_LAYER, SICK_LAYER = "sha256:aa", "sha256:bb", "sha256:cc"

METHODS: dict[str, tuple[Any, Any]] = {
    "Prepare": (api.PrepareRequest, api.MountsResponse),
    "View": (api.PrepareRequest, api.MountsResponse),
    "Mounts": (api.KeyRequest, api.MountsResponse),
    "Commit": (api.CommitRequest, Empty),
    "Remove": (api.KeyRequest, Empty),
    "Stat": (api.KeyRequest, api.InfoResponse),
    "Update": (api.UpdateRequest, api.InfoResponse),
    "Usage": (api.KeyRequest, api.UsageResponse),
    "Cleanup": (api.CleanupRequest, Empty),
}


@dataclass
class PretendedLayers:
    """Folders instead of mounts."""

    folder: Path
    mounted: list[str] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)

    def find(self, request: LayerRequest) -> Found:
        if request.digest == TAR_LAYER:
            return Found(None, "a tar")
        return Found("sick" if request.digest == SICK_LAYER else "well", "EROFS")

    def prepare(self, request: LayerRequest) -> None:
        pass

    def path(self, layer: str) -> Path:
        return self.folder / layer

    def mount(self, layer: str) -> Path:
        if layer == "sick":
            raise MountError("the registry is gone")
        self.mounted.append(layer)
        self.path(layer).mkdir(parents=True, exist_ok=True)
        return self.path(layer)

    def usage(self, layer: str) -> Usage:
        return Usage(12345, 3)

    def keep_only(self, layers: set[str]) -> None:
        self.kept = layers


class Client:
    """containerd's side."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def __call__(self, method: str, **values):
        request, answer = METHODS[method]
        call = self._channel.unary_unary(
            f"/{SERVICE}/{method}", request.SerializeToString, answer.FromString
        )
        return call(request(**values), timeout=20)

    def names(self, *filters: str) -> list[str]:
        call = self._channel.unary_stream(
            f"/{SERVICE}/List", api.ListRequest.SerializeToString, api.ListResponse.FromString
        )
        answers = call(api.ListRequest(filters=filters), timeout=20)
        return [info.name for answer in answers for info in answer.info]

    def refused(self, method: str, **values) -> grpc.StatusCode:
        with pytest.raises(grpc.RpcError) as caught:
            self(method, **values)
        return caught.value.code()

    def layer(self, digest: str, target: str, parent: str = "") -> grpc.StatusCode | None:
        """Prepare as containerd does for a layer of an image; None if it is to unpack it."""
        labels = {
            TARGET: target,
            "containerd.io/snapshot/cri.image-ref": "r.example/a:1",
            "containerd.io/snapshot/cri.layer-digest": digest,
        }
        try:
            self("Prepare", key=f"extract {target}", parent=parent, labels=labels)
        except grpc.RpcError as error:
            return error.code()
        return None


@pytest.fixture
def layers(tmp_path: Path) -> PretendedLayers:
    return PretendedLayers(tmp_path / "layers")


@pytest.fixture
def snapshotter(tmp_path: Path, layers: PretendedLayers) -> Iterator[Snapshotter]:
    made = Snapshotter(tmp_path / "root", layers)
    yield made
    made.close()


@pytest.fixture
def client(snapshotter: Snapshotter, tmp_path: Path) -> Iterator[Client]:
    server = start_server(tmp_path / "s.sock", [SnapshotsService(snapshotter).handler()])
    with grpc.insecure_channel(f"unix:{tmp_path}/s.sock") as channel:
        yield Client(channel)
    server.stop(None).wait()


def options(mounts: api.MountsResponse) -> dict[str, str]:
    [mount] = mounts.mounts
    assert mount.type == "overlay"
    return dict(option.split("=", 1) for option in mount.options)


def test_a_lazy_layer_exists_at_once(client: Client, layers: PretendedLayers):
    assert client.layer(LAZY_LAYER, "sha256:t") is grpc.StatusCode.ALREADY_EXISTS
    # What containerd asks next (metadata/snapshot.go):
    assert client.names('labels."containerd.io/snapshot.ref"==sha256:t,parent==""') == ["sha256:t"]
    info = client("Stat", key="sha256:t").info
    assert info.kind == api.COMMITTED
    assert info.labels[LAZY] == "true"
    assert "EROFS" in info.labels[WHY]
    assert layers.mounted == ["well"]
    usage = client("Usage", key="sha256:t")
    assert (usage.size, usage.inodes) == (12345, 3)
    assert client.layer(LAZY_LAYER, "sha256:t") is grpc.StatusCode.ALREADY_EXISTS


def test_another_layer_is_left_to_containerd_and_said_to_be(
    client: Client, snapshotter: Snapshotter
):
    assert client.layer(LAZY_LAYER, "sha256:t") is grpc.StatusCode.ALREADY_EXISTS
    assert client.layer(TAR_LAYER, "sha256:u", "sha256:t") is None
    info = client("Stat", key="extract sha256:u").info
    assert info.labels[LAZY] == "false"
    assert info.labels[WHY] == "a tar"
    assert (snapshotter.counters.lazy, snapshotter.counters.fallbacks) == (1, 1)
    client("Commit", name="sha256:u", key="extract sha256:u", labels={"a": "b"})
    info = client("Stat", key="sha256:u").info
    assert (info.kind, info.parent) == (api.COMMITTED, "sha256:t")
    assert dict(info.labels) == {LAZY: "false", WHY: "a tar", "a": "b"}


def test_a_lazy_layer_on_what_each_namespace_has_unpacked(client: Client):
    for space in ("a", "b"):
        client("Prepare", key=f"{space}/key")
        client("Commit", name=f"{space}/1/sha256:t", key=f"{space}/key")
    for space in ("a", "b", "b"):
        parent = f"{space}/1/sha256:t"
        assert client.layer(LAZY_LAYER, "sha256:u", parent) is grpc.StatusCode.ALREADY_EXISTS
        sought = f'labels."containerd.io/snapshot.ref"==sha256:u,parent=="{parent}"'
        [name] = client.names(sought)
        assert client("Stat", key=name).info.parent == parent


def test_a_layer_that_cannot_be_mounted_is_an_error_and_nothing_stays(
    client: Client, snapshotter: Snapshotter
):
    assert client.layer(SICK_LAYER, "sha256:t") is grpc.StatusCode.UNAVAILABLE
    assert client.names() == []
    assert snapshotter.counters.failures == 1


def test_what_became_of_layers_is_in_the_metrics(
    client: Client, snapshotter: Snapshotter, tmp_path: Path
):
    client.layer(LAZY_LAYER, "sha256:t")
    client.layer(TAR_LAYER, "sha256:u", "sha256:t")
    client.layer(SICK_LAYER, "sha256:v")
    server = MetricsServer(f"unix:{tmp_path}/metrics", snapshotter.counters)
    try:
        found = scrape("--unix-socket", f"{tmp_path}/metrics", "http://x/metrics")
        with pytest.raises(MountError, match="another process listens there"):
            MetricsServer(f"unix:{tmp_path}/metrics", snapshotter.counters)
    finally:
        server.stop()
    for outcome in ("lazy", "fallback", "failed"):
        assert found["lazyfs_snapshotter_layers_total", outcome] == 1
    assert found["lazyfs_snapshotter_errors_total",] == 0
    assert not (tmp_path / "metrics").exists()


def test_containers_are_overlays_with_the_layers_below(client: Client, layers: PretendedLayers):
    client.layer(LAZY_LAYER, "sha256:t")
    client.layer(TAR_LAYER, "sha256:u", "sha256:t")
    client("Commit", name="sha256:u", key="extract sha256:u")
    one = options(client("Prepare", key="one", parent="sha256:u"))
    two = options(client("Prepare", key="two", parent="sha256:u"))
    assert one["lowerdir"] == two["lowerdir"]
    assert one["upperdir"] != two["upperdir"]
    tar, lazy = one["lowerdir"].split(":")
    assert os.path.realpath(lazy) == os.path.realpath(layers.path("well"))
    assert Path(tar).is_dir()
    assert Path(one["workdir"]).is_dir()
    assert options(client("Mounts", key="one")) == one
    view = options(client("View", key="view", parent="sha256:u"))
    assert set(view) <= {"lowerdir", "index"}
    [alone] = client("View", key="alone", parent="sha256:t").mounts
    assert (alone.type, list(alone.options)) == ("bind", ["ro", "rbind"])
    assert alone.source == os.path.realpath(layers.path("well"))


def test_a_snapshot_without_a_parent_is_a_folder(client: Client):
    [mount] = client("Prepare", key="a").mounts
    assert (mount.type, list(mount.options)) == ("bind", ["rw", "rbind"])
    Path(mount.source, "file").write_bytes(b"x" * 10_000)
    usage = client("Usage", key="a")
    assert usage.inodes == 2
    assert usage.size == sum(
        path.stat().st_blocks * 512 for path in (Path(mount.source), Path(mount.source, "file"))
    )
    client("Commit", name="b", key="a")
    [mount] = client("View", key="v", parent="b").mounts
    assert Path(mount.source, "file").stat().st_size == 10_000
    assert client.refused("Remove", key="b") is grpc.StatusCode.FAILED_PRECONDITION
    client("Remove", key="v")
    client("Remove", key="b")
    assert not Path(mount.source).exists()
    assert client.names() == []


@pytest.mark.parametrize("method", ["Mounts", "Remove", "Stat", "Usage"])
def test_what_is_not_there_is_not_found(client: Client, method: str):
    assert client.refused(method, key="nothing") is grpc.StatusCode.NOT_FOUND


def test_what_means_nothing_is_refused(client: Client):
    client("Prepare", key="a")
    assert client.refused("Prepare", key="a") is grpc.StatusCode.ALREADY_EXISTS
    assert client.refused("Prepare", key="") is grpc.StatusCode.INVALID_ARGUMENT
    assert client.refused("Prepare", key="b", parent="a") is grpc.StatusCode.INVALID_ARGUMENT
    assert client.refused("Prepare", key="b", parent="none") is grpc.StatusCode.NOT_FOUND
    assert client.refused("Commit", name="b", key="none") is grpc.StatusCode.NOT_FOUND
    client("Commit", name="c", key="a")
    assert client.refused("Commit", name="d", key="c") is grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(grpc.RpcError) as caught:
        client.names("no filter at all")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_labels_change_by_mask(client: Client):
    client("Prepare", key="a", labels={"x": "1", "y": "2"})

    def update(labels: dict[str, str], *paths: str) -> dict[str, str]:
        info = api.Info(name="a", labels=labels)
        return dict(client("Update", info=info, update_mask=FieldMask(paths=paths)).info.labels)

    assert update({"x": "3", "z": "4"}, "labels.x", "labels.y") == {"x": "3"}
    assert update({"q": "5"}, "labels") == {"q": "5"}
    assert update({"r": "6"}) == {"r": "6"}
    refused = client.refused(
        "Update", info=api.Info(name="a"), update_mask=FieldMask(paths=["parent"])
    )
    assert refused is grpc.StatusCode.INVALID_ARGUMENT


def test_more_snapshots_than_fit_a_message_are_listed(client: Client, snapshotter: Snapshotter):
    wanted = [f"s{number}" for number in range(250)]
    for name in wanted:
        snapshotter.view(name, "", {})
    assert client.names() == wanted
    assert client.names("name==s7", "name==s8") == ["s7", "s8"]


def test_cleanup_removes_what_nobody_needs(client: Client, layers: PretendedLayers, tmp_path: Path):
    client.layer(LAZY_LAYER, "sha256:t")
    client("Prepare", key="one", parent="sha256:t")
    left = tmp_path / "root/snapshots/99"
    (left / "fs").mkdir(parents=True)
    (left / "fs/file").write_text("of a crash")
    client("Cleanup")
    assert layers.kept == {"well"}
    assert not left.exists()
    assert client("Mounts", key="one").mounts
    client("Remove", key="one")
    client("Remove", key="sha256:t")
    client("Cleanup")
    assert layers.kept == set()
    assert layers.path("well").is_dir(), "what lies behind the link is not ours to remove"
    assert list((tmp_path / "root/snapshots").iterdir()) == []


def test_cleanup_leaves_a_layer_alone_whose_snapshot_is_being_made(
    client: Client, snapshotter: Snapshotter, layers: PretendedLayers, monkeypatch
):
    mount = layers.mount

    def meanwhile(layer: str) -> Path:
        layers.kept = {"untouched"}
        client("Cleanup")
        assert layers.kept == {"untouched"}
        assert snapshotter.postponed
        return mount(layer)

    monkeypatch.setattr(layers, "mount", meanwhile)
    assert client.layer(LAZY_LAYER, "sha256:t") is grpc.StatusCode.ALREADY_EXISTS
    client("Cleanup")
    assert layers.kept == {"well"}
    assert not snapshotter.postponed


def test_a_sick_layer_does_not_stop_the_others_after_a_restart(
    tmp_path: Path, layers: PretendedLayers
):
    first = Snapshotter(tmp_path / "again", layers)
    first.close()
    metadata = Metadata(tmp_path / "again/metadata.db")
    metadata.create("a", "", Kind.COMMITTED, {}, "sick")
    metadata.create("b", "", Kind.COMMITTED, {}, "well")
    metadata.close()
    second = Snapshotter(tmp_path / "again", layers)
    assert second.restore() == 1
    assert layers.mounted == ["well"]
    assert second.get("a").layer == "sick"
    with pytest.raises(MountError):
        second.prepare("one", "a", {})
    with pytest.raises(MissingSnapshotError):
        second.get("one")
    # A process that died before it made the folder of "b":
    assert second.prepare("two", "b", {})
    assert os.path.realpath(tmp_path / "again/snapshots/2/fs") == os.fspath(layers.path("well"))
    second.close()


def test_a_list_of_another_version_is_refused(tmp_path: Path):
    path = tmp_path / "metadata.db"
    Metadata(path).close()
    with sqlite3.connect(path) as base:
        base.execute("PRAGMA user_version = 7")
    base.close()
    with pytest.raises(SnapshotError, match="version 7"):
        Metadata(path)

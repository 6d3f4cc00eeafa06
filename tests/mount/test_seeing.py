"""What can be seen of a real mount from outside: metrics, logs, and why a file cannot be read."""

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.converted import ConvertedImage, push_and_convert
from tests.support.counting_proxy import counting_proxy
from tests.support.lazy_mounts import LazyMount, lazyfs, mounted
from tests.support.mounting import needs_fuse
from tests.support.registry_server import RegistryServer, running_registry
from tests.support.scraping import scrape
from tests.support.survival import kill_daemon, next_daemon
from tests.support.tiny_image import write_layout

pytestmark = [pytest.mark.mount, needs_fuse]

FILES = {f"d/{n}": bytes((n * k) % 251 for k in range(50_000)) for n in range(40)}
UPPER = {"d/.wh.3": b"", "d/new": b"new", "d/4": b"another four", "e/x": b"x"}
HEADERS_BYTES = 2048
"""More than the headers of one answer take."""


@pytest.fixture(scope="module")
def image(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[ConvertedImage, RegistryServer]]:
    folder = tmp_path_factory.mktemp("seeing")
    write_layout(folder / "layout", "tar", [FILES, UPPER])
    with running_registry(folder / "registry") as registry:
        options = ("--chunk-size", "64KiB")
        yield (
            push_and_convert(folder / "layout", "tar", "app", registry, folder / "raw", *options),
            registry,
        )


def log_of(mount: LazyMount) -> list[dict]:
    return [json.loads(line) for line in mount.log().splitlines()]


def read_all(mount: LazyMount) -> None:
    for name, content in (FILES | UPPER).items():
        path = mount.path / name
        if ".wh." not in name and name != "d/3":
            assert path.read_bytes() == content


def test_metrics_add_up_with_the_wire_and_begin_anew_with_another_daemon(image, tmp_path: Path):
    converted, registry = image
    socket_path = tmp_path / "metrics"
    address = ("--unix-socket", str(socket_path), "http://localhost/metrics")
    options = ("--cache-dir", tmp_path / "cache", "--log-format", "json")
    with (
        counting_proxy(registry.host) as proxy,
        mounted(
            converted.name_at(proxy.host),
            *(tmp_path / "mnt", *options, "--metrics", f"unix:{socket_path}"),
        ) as mount,
    ):
        assert socket_path.stat().st_mode & 0o777 == 0o600
        read_all(mount)
        found, status = scrape(*address), mount.status()
        received = found["lazyfs_source_bytes_total", proxy.host, "registry"]
        requests = found["lazyfs_registry_requests_total", proxy.host, "registry"]
        assert received <= proxy.received_bytes <= received + (requests + 10) * HEADERS_BYTES
        fetched = found["lazyfs_fetched_bytes_total",]
        assert 0 < fetched == status["totals"]["fetched_bytes"] <= received
        assert found["lazyfs_fuse_read_bytes_total",] == status["fuse"]["read_bytes"] > 10**6
        reads = found["lazyfs_fuse_requests_total", "read"]
        assert reads == found["lazyfs_fuse_read_seconds_count",] > len(FILES) / 2
        asked = found["lazyfs_fetch_requests_total",]
        assert asked == found["lazyfs_fetch_seconds_count",]
        assert found["lazyfs_layers", "true", "seekable"] == 2
        written = sum(path.stat().st_size for path in (tmp_path / "cache/chunks").rglob("*.data"))
        assert found["lazyfs_cache_written_bytes_total",] == written
        assert sum(value for key, value in found.items() if key[0] == "lazyfs_errors_total") == 0
        assert found["lazyfs_daemon_restarts_total",] == 0
        assert (status["lazy"], status["driver"]) == (True, "fuse")

        kill_daemon(mount.folder)
        daemon = next_daemon(mount.path, mount.folder)
        after = scrape(*address)
        assert after["lazyfs_daemon_restarts_total",] == 1
        assert after["lazyfs_fuse_read_bytes_total",] == 0
        assert after["process_start_time_seconds",] > found["process_start_time_seconds",]
        events = [(line.get("event"), line["pid"]) for line in log_of(mount)]
        assert [event for event, _ in events] == ["mounted", "daemon_ended", "taken_over"]
        assert events[2][1] == daemon
    assert not socket_path.exists()


def test_a_port_that_is_taken_is_said_and_strange_requests_harm_nobody(image, tmp_path: Path):
    converted, _ = image
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = ("--cache-dir", tmp_path / "cache", "--metrics", str(port))
        done = lazyfs("mount", "--mkdir", *options, converted.name, tmp_path / "mnt", check=False)
        assert done.returncode == 1
        assert f"cannot serve metrics at 127.0.0.1:{port}" in done.stderr
    with mounted(converted.name, tmp_path / "mnt", *options) as mount:
        for request in (b"\0" * 40_000, b"POST / HTTP/1.1\r\nHost: x\r\n\r\n", b"GET", b""):
            with socket.create_connection(("127.0.0.1", port)) as strange:
                strange.settimeout(20)
                with contextlib.suppress(OSError):  # it may hang up at once
                    strange.sendall(request)
                    strange.shutdown(socket.SHUT_WR)
                    assert b" 200 " not in strange.recv(4096)
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
        read_all(mount)
        for connection in idle:
            connection.close()
        url = f"http://127.0.0.1:{port}/metrics"
        accept = "Accept: application/openmetrics-text; version=1.0.0; escaping=\x01"
        subprocess.run(["curl", "-s", "-m", "20", "-H", accept, url], check=False)
        assert scrape(url)["lazyfs_fuse_requests_in_flight",] == 0


def test_an_outage_is_one_line_and_one_cause(image, tmp_path: Path):
    converted, registry = image
    options = ("--cache-dir", tmp_path / "cache", "--log-format", "json", "--timeout", "1s")
    with running_registry(registry.storage.parent) as own:
        name = converted.name_at(own.host)
        with mounted(name, tmp_path / "mnt", *options) as mount:
            assert (mount.path / "d/0").read_bytes() == FILES["d/0"]
            own.stop()
            for number in range(10, 40, 5):
                with pytest.raises(OSError, match="Input/output error"):
                    (mount.path / f"d/{number}").read_bytes()
            degraded = [line for line in log_of(mount) if line.get("event") == "layer_degraded"]
            [line] = degraded
            assert line["host"] == own.host
            assert line["chunk"].startswith("chunk ")
            assert line["level"] == "error"
            assert line["cause"] in ("unreachable", "timeout")
            status = mount.status()
            assert status["failures"][0]["host"] == own.host
            causes = status["layers"][0]["errors_by_cause"]
            assert sum(causes.values()) == status["totals"]["errors"] > 0


def explain(path: Path) -> dict:
    document = json.loads(lazyfs("explain", "--json", path).stdout)
    assert isinstance(document, dict)
    return document


def test_where_files_come_from_and_what_hides_them(image, tmp_path: Path):
    converted, _ = image
    with mounted(converted.name, tmp_path / "mnt", "--cache-dir", tmp_path / "cache") as mount:
        fetched = mount.totals()["fetched_bytes"]
        lower = explain(mount.path / "d/10")
        assert (lower["result"], lower["layer"], lower["size_bytes"]) == ("found", 1, 50_000)
        assert lower["problem"] is None
        assert "dm-verity" in lower["verified_by"]
        assert sum(extent["length"] for extent in lower["extents"]) == 50_000
        assert lower["complete"]
        read_before = mount.status()["fuse"]["read_bytes"]
        assert (mount.path / "d/10").read_bytes() == FILES["d/10"]
        assert mount.status()["fuse"]["read_bytes"] > read_before, "explain has read the file"
        after = explain(mount.path / "d/10")
        assert after["counts"]["cached"] == after["counts"]["chunks"] >= 1
        assert lower["counts"]["chunks"] == after["counts"]["chunks"]
        assert mount.totals()["fetched_bytes"] > fetched
        assert after["node"] == os.stat(mount.path / "d/10").st_ino

        upper = explain(mount.path / "d/4")
        assert upper["layer"] == 2
        assert [(seen["layer"], seen["hidden_by"]) for seen in upper["layers"]] == [
            (2, None),
            (1, "layer 2: file /d/4"),
        ]
        gone = explain(mount.path / "d/3")
        assert gone["result"] == "hidden"
        assert [(seen["layer"], seen["what"]) for seen in gone["layers"]] == [
            (2, "whiteout"),
            (1, "file"),
        ]
        assert gone["layers"][1]["hidden_by"] == "layer 2: whiteout /d/3"
        absent = explain(mount.path / "d/nowhere/x")
        assert (absent["result"], absent["layers"]) == ("absent", [])
        folder = explain(mount.path / "d")
        assert folder["mode"].startswith("d")
        assert [(seen["layer"], seen["hidden_by"]) for seen in folder["layers"]] == [
            (2, None),
            (1, None),
        ]
        root = explain(mount.path)
        assert (root["path"], root["result"]) == ("/", "found")
        text = lazyfs("explain", mount.path / "d/3").stdout
        assert "not there: hidden or removed by a layer" in text
        outside = lazyfs("explain", tmp_path, check=False)
        assert outside.returncode == 1
        assert "is not in a lazyfs mount" in outside.stderr


def test_a_failed_chunk_is_explained_without_a_registry(image, tmp_path: Path):
    converted, registry = image
    options = ("--cache-dir", tmp_path / "cache", "--timeout", "1s")
    with (
        running_registry(registry.storage.parent) as own,
        mounted(converted.name_at(own.host), tmp_path / "mnt", *options) as mount,
    ):
        os.listdir(mount.path / "d")
        own.stop()
        path = mount.path / "d/20"
        with pytest.raises(OSError, match="Input/output error"):
            path.read_bytes()
        document = explain(path)
        assert document["result"] == "found"
        errors = [chunk["last_error"] for chunk in document["chunks"] if chunk["last_error"]]
        assert errors
        for error in errors:
            assert error["host"] == own.host
            assert error["cause"] in ("unreachable", "timeout")
            assert error["times"] >= 1
        assert document["counts"]["cached"] < document["counts"]["chunks"]
        assert f"failed (host {own.host}" in lazyfs("explain", path).stdout

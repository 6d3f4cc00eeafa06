"""Metrics of made-up counters, read by Prometheus' own parser; and where they are served."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from cache.store import StoreStatistics
from lazyfs.errors import DeadlineExceededError, SourceUnavailableError
from lazyfs.fuse.counters import Counters
from lazyfs.histogram import Histogram
from lazyfs.layer.counters import LayerCounters
from lazyfs.layer.failures import CAUSES, MAX_FAILURES, FailureMemory, cause_of, failure_of
from lazyfs.mount.figures import CacheFigures, Figures
from lazyfs.mount.metrics import families
from lazyfs.mount.metricsaddress import TcpAddress, canonical_address, parse_address
from lazyfs.mount.scraping import _Snapshot
from registry.errors import (
    ContentError,
    DeniedError,
    NotFoundError,
    ResponseError,
    TooManyRequestsError,
    TransportError,
)
from registry.health import HostHealth


@given(st.lists(st.floats(0, 100)))
def test_a_histogram_counts_each_value_once(values: list[float]):
    bounds = (0.1, 1, 10)
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    expected = [sum(value <= bound for value in values) for bound in (*bounds, float("inf"))]
    assert [count for _, count in histogram.cumulative()] == expected
    assert histogram.total == pytest.approx(sum(values))


def figures() -> Figures:
    counters = LayerCounters(requests=3, fetched_bytes=300, guessed_bytes=20, memory_bytes=7)
    counters.failed(SourceUnavailableError("x"))
    for seconds in (0.004, 0.2, 999):
        counters.first_byte_s.observe(seconds)
    host = HostHealth().status("host.test:5000", "mirror", 0.0, received_bytes=350)
    cache = CacheFigures(StoreStatistics(hits=1, bytes_read=40), 4096, None, usable=True)
    return Figures('im"a\\ge\n', None, [counters, counters], {("whole", False): 2}, (host,), cache)


def samples(text: str, parse=text_string_to_metric_families) -> dict:
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def test_what_prometheus_reads():
    fuse = Counters()
    fuse.operations["read"] += 1
    fuse.began[1] = 0.0
    fuse.began[2] = 5.0
    registry = CollectorRegistry()
    found = list(families(figures(), fuse, 5.5, mountpoint="/mnt", restarts=2))
    registry.register(_Snapshot(found))
    read = samples(generate_latest(registry).decode())
    assert read["lazyfs_daemon_restarts_total",] == 2
    assert read["lazyfs_fuse_requests_total", ("operation", "read")] == 1
    assert read["lazyfs_fuse_requests_in_flight",] == 2
    assert read["lazyfs_fuse_requests_late",] == 1
    assert read["lazyfs_fuse_oldest_request_seconds",] == 5.5
    assert read["lazyfs_layers", ("lazy", "false"), ("mode", "whole")] == 2
    assert read["lazyfs_fetched_bytes_total",] == 600
    assert read["lazyfs_guessed_bytes_total",] == 40
    assert read["lazyfs_guessed_right_bytes_total",] == 0
    assert read["lazyfs_errors_total", ("cause", "unreachable")] == 2
    assert read["lazyfs_fetch_first_byte_seconds_bucket", ("le", "0.25")] == 4
    assert read["lazyfs_fetch_first_byte_seconds_count",] == 6
    source = "lazyfs_source_bytes_total"
    assert read[source, ("host", "host.test:5000"), ("source", "mirror")] == 350
    assert read[source, ("host", ""), ("source", "cache")] == 40
    assert read[source, ("host", ""), ("source", "memory")] == 14
    assert read["lazyfs_cache_limit_bytes",] == float("inf")
    name = "lazyfs_mount_info"
    [about] = [labels for labels in read if labels[0] == name]
    assert ("image", 'im"a\\ge\n') in about
    assert samples(generate_openmetrics(registry).decode(), parse_openmetrics) == read


def test_every_cause_has_a_name():
    def caused(error: Exception) -> SourceUnavailableError:
        failure = SourceUnavailableError("x")
        failure.__cause__ = error
        return failure

    found = [
        cause_of(error)
        for error in (
            DeadlineExceededError(),
            caused(TooManyRequestsError("x", status=429)),
            caused(DeniedError("x", status=403)),
            caused(NotFoundError("x", status=404)),
            caused(ResponseError("x", status=503)),
            caused(ResponseError("x", status=416)),
            caused(ContentError("x")),
            caused(TransportError("x")),
            caused(caused(TransportError("x"))),
            ValueError(),
        )
    ]
    assert set(found) <= set(CAUSES)
    assert found == [*CAUSES[2:10], "unreachable", "other"]


def test_failures_tell_what_the_registry_said_and_are_forgotten_in_the_end():
    refused = ResponseError("x", status=503)
    refused.host, refused.attempts = "mirror.test", 4
    error = SourceUnavailableError("gone")
    error.__cause__ = refused
    memory = FailureMemory()
    for _ in range(3):
        memory.note(failure_of("layer 1", "chunk 0", error, "registry.test"))
    last = memory.last("layer 1", "chunk 0")
    assert last is not None
    assert (last.host, last.status, last.attempts, last.times) == ("mirror.test", 503, 4, 3)
    for number in range(1, MAX_FAILURES + 1):
        memory.note(failure_of("layer 1", f"chunk {number}", error, "registry.test"))
    assert memory.last("layer 1", "chunk 0") is None
    assert [failure.part for failure in memory.latest(2)] == ["chunk 1024", "chunk 1023"]


def test_addresses():
    assert parse_address("9100") == parse_address(":9100") == TcpAddress("127.0.0.1", 9100)
    assert parse_address("[::1]:80") == TcpAddress("::1", 80)
    assert canonical_address("[::1]:80") == "[::1]:80"
    assert canonical_address("0.0.0.0:80") == "0.0.0.0:80"
    assert canonical_address("unix:some/where") == f"unix:{Path('some/where').absolute()}"


@pytest.mark.parametrize("text", ["", "unix:", "host", "host:", "host:0", "host:65536", "a@b:1"])
def test_what_is_no_address(text: str):
    with pytest.raises(ValueError, match="HOST:PORT"):
        parse_address(text)

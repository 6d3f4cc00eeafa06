"""The metrics of a mount: counters that exist anyway, put into Prometheus' words when it asks.

Nothing is counted twice and nothing is kept here. Labels have few values, whatever an image or
a server says: hosts are those of the configuration, not where they redirect to.
"""

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from lazyfs import __version__
from lazyfs.fuse.counters import Counters
from lazyfs.histogram import FETCH_BOUNDS_S, Histogram
from lazyfs.layer.counters import LayerCounters
from lazyfs.layer.failures import CAUSES
from lazyfs.mount.figures import CacheFigures, Figures
from registry.health import HostStatus

_HOST = ("host", "role")


def families(
    figures: Figures, counters: Counters, now_s: float, *, mountpoint: str, restarts: int
) -> Iterator[Metric]:
    """All metrics of this moment, but those of the process.

    Args:
        figures: of the image.
        counters: of the FUSE side.
        now_s: on the clock that ``counters`` were given.
        mountpoint: where it is mounted.
        restarts: how often another daemon took over.
    """
    about = GaugeMetricFamily(
        "lazyfs_mount_info",
        "The mount that these metrics are about.",
        labels=("mountpoint", "image", "digest", "version"),
    )
    about.add_metric((mountpoint, figures.image, figures.digest or "", __version__), 1)
    yield about
    yield _counter("daemon_restarts", "Daemons that took the mount over from another.", restarts)
    yield from _fuse(counters, now_s)
    yield from _layers(figures)
    yield from _hosts(figures.hosts)
    yield _bytes(figures)
    if figures.cache is not None:
        yield from _cache(figures.cache)


def process_metrics() -> list[Metric]:
    """CPU time, memory, open files and start time of this process."""
    return list(ProcessCollector(registry=CollectorRegistry()).collect())


def _fuse(counters: Counters, now_s: float) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "lazyfs_fuse_requests", "File system requests by the kernel.", labels=("operation",)
    )
    for operation, count in counters.operations.items():
        requests.add_metric((operation,), count)
    yield requests
    failures = CounterMetricFamily(
        "lazyfs_fuse_failures", "Requests that failed, by what readers got.", labels=("errno",)
    )
    for name, count in counters.failures.items():
        failures.add_metric((name,), count)
    yield failures
    yield _counter("fuse_read_bytes", "File data given to readers.", counters.read_bytes)
    yield _histogram("fuse_read_seconds", "How long reads took.", counters.read_s)
    yield _gauge("fuse_requests_in_flight", "Requests in hand.", counters.in_flight)
    yield _gauge("fuse_requests_late", "Of these, waiting for 1 s or more.", counters.late(now_s))
    oldest_s = counters.oldest_s(now_s)
    yield _gauge("fuse_oldest_request_seconds", "How long the oldest of them has waited.", oldest_s)


def _layers(figures: Figures) -> Iterator[Metric]:
    modes = GaugeMetricFamily(
        "lazyfs_layers", "Layers and what belongs to them.", labels=("mode", "lazy")
    )
    for (mode, lazy), count in figures.modes.items():
        modes.add_metric((mode, str(lazy).lower()), count)
    yield modes
    layers = figures.layers
    yield _counter("fetch_requests", "Ranges of blobs asked for.", _sum(layers, "requests"))
    yield _counter("fetched_bytes", "Bytes of blobs that came.", _sum(layers, "fetched_bytes"))
    guessed, right = _sum(layers, "guessed_bytes"), _sum(layers, "guessed_right_bytes")
    yield _counter("guessed_bytes", "Bytes of blobs fetched by guesses.", guessed)
    yield _counter("guessed_right_bytes", "Of these, what was read later.", right)
    first, whole = Histogram(FETCH_BOUNDS_S), Histogram(FETCH_BOUNDS_S)
    for layer in layers:
        first.add(layer.first_byte_s)
        whole.add(layer.whole_s)
    yield _histogram("fetch_first_byte_seconds", "From asking to the first byte.", first)
    yield _histogram("fetch_seconds", "From asking to the last byte.", whole)
    wrong = _sum(layers, "verification_failures")
    yield _counter("verification_failures", "Bytes that were not the promised ones.", wrong)
    errors = CounterMetricFamily(
        "lazyfs_errors", "Fetches that failed for good, by cause.", labels=("cause",)
    )
    for cause in CAUSES:
        count = sum(layer.errors_by_cause[cause] for layer in layers)
        errors.add_metric((cause.replace(" ", "_"),), count)
    yield errors


def _hosts(hosts: Sequence[HostStatus]) -> Iterator[Metric]:
    columns = (
        ("registry_requests", "Requests to a host, tries and second requests included."),
        ("registry_failures", "Of these, without a usable answer."),
        ("registry_retries", "Of these, sent because an earlier one had failed."),
        ("registry_hedges", "Second requests, sent because the first was slow."),
        ("registry_wrong_answers", "Answers with other bytes than promised."),
    )
    for name, text in columns:
        family = CounterMetricFamily(f"lazyfs_{name}", text, labels=_HOST)
        for host in hosts:
            count = getattr(host, name.removeprefix("registry_"))
            family.add_metric((host.host, host.role), count)
        yield family
    well = GaugeMetricFamily(
        "lazyfs_registry_ok", "1: asked as usual; 0: failing, or gave wrong bytes.", labels=_HOST
    )
    for host in hosts:
        well.add_metric((host.host, host.role), host.state == "ok")
    yield well


def _bytes(figures: Figures) -> Metric:
    """Where bytes came from."""
    found = CounterMetricFamily(
        "lazyfs_source_bytes", "Bytes by where they came from.", labels=("source", "host")
    )
    for host in figures.hosts:
        found.add_metric((host.role, host.host), host.received_bytes)
    if figures.cache is not None:
        found.add_metric(("cache", ""), figures.cache.statistics.bytes_read)
    found.add_metric(("memory", ""), _sum(figures.layers, "memory_bytes"))
    return found


def _cache(cache: CacheFigures) -> Iterator[Metric]:
    done = cache.statistics
    yield _counter("cache_hits", "Reads of a chunk that were answered.", done.hits)
    yield _counter("cache_misses", "Reads of a chunk that were not.", done.misses)
    yield _counter("cache_stored_chunks", "Chunks written.", done.puts)
    yield _counter("cache_written_bytes", "Bytes written.", done.bytes_written)
    yield _counter("cache_evicted_chunks", "Chunks removed to make room.", done.evictions)
    yield _counter("cache_evicted_bytes", "Bytes removed to make room.", done.bytes_evicted)
    yield _counter("cache_discarded_chunks", "Chunks removed as rotten.", done.discards)
    yield _counter("cache_errors", "Failures of the disk or the store.", done.errors)
    yield _gauge("cache_size_bytes", "What all mounts keep in this cache.", cache.usage_bytes)
    limit = float("inf") if cache.limit_bytes is None else cache.limit_bytes
    yield _gauge("cache_limit_bytes", "What it may become.", limit)
    yield _gauge("cache_ok", "1: on disk; 0: the disk fails, in memory.", cache.usable)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"lazyfs_{name}", text, value=value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"lazyfs_{name}", text, value=value)


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    buckets = histogram.cumulative()
    return HistogramMetricFamily(f"lazyfs_{name}", text, buckets=buckets, sum_value=histogram.total)


def _sum(layers: Sequence[LayerCounters], name: str) -> int:
    return sum(getattr(layer, name) for layer in layers)

"""The snapshotter's own metrics, served by a thread that does nothing else."""

import queue
import threading

import trio
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from lazyfs.mount.scraping import Scraped, leave, listen
from lazyfs.snapshotter.counters import Counters


def families(counters: Counters) -> list[Metric]:
    """The metrics, as they stand."""
    layers = CounterMetricFamily(
        "lazyfs_snapshotter_layers",
        "Layers that containerd asked for, by what became of them.",
        labels=["outcome"],
    )
    layers.add_metric(["lazy"], counters.lazy)
    layers.add_metric(["fallback"], counters.fallbacks)
    layers.add_metric(["failed"], counters.failures)
    bugs = CounterMetricFamily(
        "lazyfs_snapshotter_errors", "Requests of containerd that failed by a bug of ours."
    )
    bugs.add_metric([], counters.errors)
    missing = GaugeMetricFamily(
        "lazyfs_snapshotter_layers_not_restored",
        "Lazy layers that could not be mounted again when the snapshotter or its store started.",
    )
    missing.add_metric([], counters.not_restored)
    return [layers, bugs, missing]


class MetricsServer:
    """Serves them until it is stopped."""

    def __init__(self, address: str, counters: Counters) -> None:
        """Begin to serve at ``address`` (``lazyfs.mount.metricsaddress``).

        Raises:
            MountError: that cannot be.
        """
        self._address = address
        self._counters = counters
        self._begun: queue.SimpleQueue[Exception | trio.lowlevel.TrioToken] = queue.SimpleQueue()
        self._scope = trio.CancelScope()
        self._thread = threading.Thread(target=trio.run, args=(self._serve,), name="metrics")
        self._thread.daemon = True
        self._thread.start()
        begun = self._begun.get()
        if isinstance(begun, Exception):
            raise begun
        self._token = begun

    def stop(self) -> None:
        """Serve no more."""
        self._token.run_sync_soon(self._scope.cancel)
        self._thread.join()

    async def _serve(self) -> None:
        try:
            listener = listen(self._address)
        except Exception as error:  # noqa: BLE001 - raised in the thread that waits for it
            self._begun.put(error)
            return
        self._begun.put(trio.lowlevel.current_trio_token())
        try:
            with self._scope:
                await Scraped(lambda: families(self._counters)).serve(listener)
        finally:
            leave(self._address)

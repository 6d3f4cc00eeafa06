"""The snapshotter's process: builds the parts, serves until a signal, watches the store."""

import logging
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

from cache.errors import CacheError
from lazyfs.errors import LazyfsError
from lazyfs.mount.options import MountOptions
from lazyfs.mount.tuning import raise_file_limit
from lazyfs.snapshotter.credentials import CredentialBook, Providers
from lazyfs.snapshotter.criproxy import ImageProxy
from lazyfs.snapshotter.folders import AUTH_NAME
from lazyfs.snapshotter.layers import LazyLayers
from lazyfs.snapshotter.layerstore import LayerStore
from lazyfs.snapshotter.metrics import MetricsServer
from lazyfs.snapshotter.server import END_WITHIN_S, SnapshotsService, start_server
from lazyfs.snapshotter.snapshotter import Snapshotter

WATCH_EVERY_S = 10.0
"""How soon it is seen that the store died for good."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command was asked for."""

    root: Path
    address: Path
    options: MountOptions
    cri: Path | None = None
    """Socket of the containerd that CRI image requests are passed on to; None: none are."""
    provider_config: Path | None = None
    provider_bin_dir: Path | None = None
    metrics: str | None = None
    """Where to serve the snapshotter's own metrics; None: nowhere."""


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; what is mounted stays mounted.

    Raises:
        LazyfsError, OSError: it cannot be begun.
    """
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    raise_file_limit()
    settings.root.mkdir(mode=0o711, parents=True, exist_ok=True)
    settings.address.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    book = CredentialBook(settings.address.parent / AUTH_NAME)
    # For the store's daemon and for our own look at manifests.
    os.environ["LAZYFS_AUTH_FILE"] = os.fspath(book.path)
    providers = None
    if settings.provider_config is not None and settings.provider_bin_dir is not None:
        providers = Providers.load(settings.provider_config, settings.provider_bin_dir, book)
    store = LayerStore(settings.root / "store", settings.options)
    layers = LazyLayers(settings.root / "layers", store, settings.options, providers)
    snapshotter = Snapshotter(settings.root, layers)
    handlers = [SnapshotsService(snapshotter).handler()]
    proxy = None
    if settings.cri is not None:
        proxy = ImageProxy(settings.cri, book)
        handlers.append(proxy)
    metrics = None
    if settings.metrics is not None:
        metrics = MetricsServer(settings.metrics, snapshotter.counters)
    server = start_server(settings.address, handlers)
    log.info("serving snapshots at %s", settings.address)
    watcher = threading.Thread(
        target=_watch, args=(store, snapshotter, providers, over), name="watch", daemon=True
    )
    watcher.start()
    over.wait()
    log.info("ending; what is mounted stays")
    server.stop(END_WITHIN_S).wait()
    layers.close()
    if metrics is not None:
        metrics.stop()
    if proxy is not None:
        proxy.close()
    snapshotter.close()
    return 0


def _watch(
    store: LayerStore,
    snapshotter: Snapshotter,
    providers: Providers | None,
    over: threading.Event,
) -> None:
    """Mount again what is not mounted: at the start, and when a store had to be started anew."""
    life: str | None = None
    while not over.is_set():
        try:
            if providers is not None:
                providers.renew()
            now = store.life()
            if now != life:
                snapshotter.restore()
                life = now
                snapshotter.cleanup()
            elif snapshotter.postponed:
                snapshotter.cleanup()
        except (LazyfsError, CacheError, OSError) as error:
            log.error("the store: %s", error)
        over.wait(WATCH_EVERY_S)

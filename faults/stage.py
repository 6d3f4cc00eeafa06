"""What the script of a fault stands on: images, servers, mounts; and what must hold in all of them.

Of every mount, in every script: no byte is wrong, nobody hangs, the daemon answers ``status`` in
time and ends well when it is asked to, and neither log nor status has a traceback or a secret.
"""

import contextlib
import functools
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from faults.image import REPOSITORY, TAG, Image, image_of_many_files, large_image, small_image
from faults.mounts import FaultError, Mount, RefusedError, foreground
from faults.proxy import ShapingProxy, shaping_proxy
from faults.servers import Answer, RegistryServer, Servers
from tests.support.certificates import Authority
from tests.support.fake_login import SECRETS
from tests.support.fake_registry import mirror_table, write_hosts
from tests.support.lazy_mounts import LazyMount
from tests.support.lazy_mounts import mounted as mounted_in_background

PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


class Shared:
    """What all scripts use and none changes; made when the first one needs it."""

    def __init__(self, folder: Path, servers: Servers) -> None:
        """Keep what is made in ``folder``."""
        self.servers = servers
        self._folder = folder
        self._lock = threading.Lock()

    @property
    def small(self) -> Image:
        """The image of most faults."""
        with self._lock:
            return self._small

    @property
    def many(self) -> Image:
        """The image of many files."""
        with self._lock:
            return self._many

    @property
    def large(self) -> Image:
        """The image of 40 MiB."""
        with self._lock:
            return self._large

    @property
    def authority(self) -> Authority:
        """Who issues certificates."""
        with self._lock:
            return self._authority

    @functools.cached_property
    def _small(self) -> Image:
        return small_image(self._folder / "small")

    @functools.cached_property
    def _large(self) -> Image:
        return large_image(self._folder / "large")

    @functools.cached_property
    def _many(self) -> Image:
        return image_of_many_files(self._folder / "many")

    @functools.cached_property
    def _authority(self) -> Authority:
        return Authority.make(self._folder / "authority")


@dataclass
class Stage:
    """For one fault."""

    folder: Path
    shared: Shared
    stack: ExitStack
    """What ends with the script."""
    environment: dict[str, str] = field(default_factory=dict)
    """Of the mounts, beside what they inherit."""
    said: list[str] = field(default_factory=list)
    """What mounts logged, for people who look for the cause of something."""
    _mounts: int = 0

    @property
    def image(self) -> Image:
        """The image of most faults."""
        return self.shared.small

    @property
    def cache(self) -> Path:
        """The cache folder of its mounts."""
        return self.folder / "cache"

    def registry(
        self, image: Image | None = None, *, answer: Answer | None = None, **how: object
    ) -> RegistryServer:
        """Start a registry with the image."""
        registry = (image or self.image).registry()
        serving = self.shared.servers.serving(registry, answer=answer, **how)  # type: ignore[arg-type]
        return self.stack.enter_context(serving)

    def proxy(self, server: str) -> ShapingProxy:
        """Start a shaping proxy in front of ``HOST:PORT``."""
        return self.stack.enter_context(self.shared.servers.running(shaping_proxy(server)))

    def hosts(self, registry: str, text: str) -> tuple[object, ...]:
        """The option that gives a registry a ``hosts.toml``."""
        [folder] = write_hosts(self.folder, registry, text)
        return "--hosts-dir", folder

    def mirrored(self, registry: RegistryServer, *mirrors: str) -> tuple[object, ...]:
        """The option that puts mirrors (``HOST:PORT``) in front of a registry."""
        urls = (f"http://{mirror}" for mirror in mirrors)
        return self.hosts(registry.host, mirror_table(*urls))

    @contextlib.contextmanager
    def mounted(
        self,
        host: str,
        *options: object,
        image: Image | None = None,
        prefix: tuple[object, ...] = (),
        cached: bool = True,
    ) -> Iterator[Mount]:
        """Mount the image as ``host`` has it (``HOST:PORT`` or a whole name).

        Raises:
            RefusedError: it is not mounted.
            FaultError: something was seen that no fault may bring about.
        """
        self._mounts += 1
        name = host if "/" in host else f"{host}/{REPOSITORY}:{TAG}"
        directory = self.folder / f"mnt{self._mounts}"
        # A fault is to meet the reads that are made here, and no guesses between them.
        words = ["--prefetch", "none", *options]
        if "--hosts-dir" not in words:
            (self.folder / "no-hosts").mkdir(exist_ok=True)
            words += ["--hosts-dir", self.folder / "no-hosts"]
        if cached and "--cache-dir" not in words:
            words += ["--cache-dir", self.cache]
        files = (image or self.image).files
        try:
            with foreground(
                name, directory, words, files, environment=self._environment(), prefix=prefix
            ) as mount:
                try:
                    yield mount
                finally:
                    self.said.append(mount.log())
                check_words(json.dumps(mount.status()))
            check_words(mount.log())
        except RefusedError as error:
            check_words(str(error))
            raise

    @contextlib.contextmanager
    def kept(self, host: str, *options: object) -> Iterator[tuple[Mount, LazyMount]]:
        """Mount in the background, so that the mount survives its daemon."""
        self._mounts += 1
        name = host if "/" in host else f"{host}/{REPOSITORY}:{TAG}"
        words: list[str | Path] = [*map(str, options), "--cache-dir", self.cache]
        directory = self.folder / f"mnt{self._mounts}"
        with mounted_in_background(name, directory, *words) as background:
            mount = Mount(directory, directory, self.image.files, None, background.folder)
            try:
                yield mount, background
            finally:
                if background.folder.exists():
                    self.said.append(mount.log())
            if background.folder.exists():
                check_words(mount.log())

    def refusal(self, host: str, *options: object, **how: object) -> str:
        """Try to mount; what the command says, as the table has it."""
        try:
            with self.mounted(host, *options, **how) as mount:  # type: ignore[arg-type]
                return f"mounted, {mount.outcome()}"
        except RefusedError as error:
            return f"mount refused: {' '.join(str(error).split())}"

    def _environment(self) -> Mapping[str, str]:
        own = {"REGISTRY_AUTH_FILE": os.fspath(self.folder / "auth.json")}
        unset = {name: "" for proxy in PROXY_VARIABLES for name in (proxy, proxy.lower())}
        return {**unset, **own, **self.environment}


def check_words(text: str) -> None:
    """Look for what must never be told.

    Raises:
        FaultError: it is told.
    """
    for secret in SECRETS:
        if secret in text:
            raise FaultError(f"a secret ({secret}) is told in: {text}")
    if "Traceback" in text or "internal error" in text:
        raise FaultError(f"a traceback: {text}")

"""Credentials from Kubernetes: of CRI's requests and of kubelet's providers; blocking.

They go into a file like Docker's, which snapshotter and store ask before all others.
"""

import base64
import fnmatch
import json
import logging
import os
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from lazyfs.errors import LazyfsError
from registry.credentials import Credentials
from registry.errors import CredentialError
from registry.reference import DOCKER_HUB, Reference, parse_reference

MAX_ENTRIES = 1000
"""Repositories whose credentials are kept; the oldest ones go."""

PROVIDER_WITHIN_S = 60.0
MAX_ANSWER_BYTES = 1 << 20
MAX_CONFIG_BYTES = 1 << 20
LEAST_CACHE_S = 10.0
DEFAULT_CACHE_S = 300.0

KIND, API = "CredentialProviderConfig", "kubelet.config.k8s.io/"
REQUEST_KIND = "CredentialProviderRequest"

log = logging.getLogger(__name__)


class CredentialBook:
    """A credential file that grows."""

    def __init__(self, path: Path) -> None:
        """Go on with the file at ``path``, if there is one that can be read."""
        self.path = path
        self._lock = threading.Lock()
        self._entries: dict[str, dict[str, str]] = {}
        try:
            entries = json.loads(path.read_bytes())["auths"]
            self._entries = {str(name): dict(entry) for name, entry in entries.items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s is begun anew: %s", path, error)

    def add(self, image: str, credentials: Credentials) -> None:
        """Keep the credentials for an image's repository.

        Raises:
            RegistryError: not the name of an image in a registry.
            OSError: the file cannot be written.
        """
        entry = {}
        if credentials.username:
            pair = f"{credentials.username}:{credentials.password}"
            entry["auth"] = base64.b64encode(pair.encode()).decode()
        if credentials.identity_token:
            entry["identitytoken"] = credentials.identity_token
        if credentials.registry_token:
            entry["registrytoken"] = credentials.registry_token
        self._put(_key(image), entry)

    def add_encoded(self, image: str, auth: str) -> None:
        """Keep what is encoded as in Docker's file already.

        Raises:
            As ``add``.
        """
        self._put(_key(image), {"auth": auth})

    def _put(self, key: str, entry: dict[str, str]) -> None:
        with self._lock:
            if self._entries.get(key) == entry:
                return
            self._entries.pop(key, None)
            self._entries[key] = entry
            while len(self._entries) > MAX_ENTRIES:
                del self._entries[next(iter(self._entries))]
            new = self.path.with_name(f".{self.path.name}.new")
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                json.dump({"auths": self._entries}, file)
            new.replace(self.path)


def _key(image: str) -> str:
    """What a credential file calls an image's repository."""
    name = _reference(image)
    return f"{name.registry}/{name.repository}"


def _reference(image: str) -> Reference:
    found = parse_reference(image)
    if not isinstance(found, Reference):
        raise CredentialError(f"{image} is not in a registry")
    return found


@dataclass(frozen=True, slots=True)
class Provider:
    """One of kubelet's credential providers."""

    program: Path
    api_version: str
    patterns: tuple[str, ...]
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    cache_s: float

    def matches(self, image: str) -> bool:
        """Whether it speaks for an image; patterns as in Kubernetes' documentation."""
        return any(matches(pattern, image) for pattern in self.patterns)

    def ask(self, image: str) -> tuple[dict[str, Credentials], float]:
        """Credentials by pattern of images, and for how many seconds they hold.

        Raises:
            CredentialError: it cannot be run, fails, or does not answer as it should.
        """
        request = {"apiVersion": self.api_version, "kind": REQUEST_KIND, "image": image}
        try:
            done = subprocess.run(  # noqa: S603 - the administrator's choice
                [os.fspath(self.program), *self.arguments],
                input=json.dumps(request).encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **self.environment},
                timeout=PROVIDER_WITHIN_S,
                check=False,
            )
            if done.returncode != 0 or len(done.stdout) > MAX_ANSWER_BYTES:
                raise CredentialError(f"{self.program.name} failed with status {done.returncode}")
            answer = json.loads(done.stdout)
            auth = {
                str(pattern): Credentials(str(entry["username"]), str(entry["password"]))
                for pattern, entry in (answer.get("auth") or {}).items()
            }
            return auth, seconds(answer.get("cacheDuration"), self.cache_s)
        except subprocess.TimeoutExpired as error:
            raise CredentialError(f"{self.program.name}: no answer in time") from error
        except OSError as error:
            raise CredentialError(f"{self.program.name}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CredentialError(f"{self.program.name}: not an answer: {error!r}") from error


class Providers:
    """All of them, and which images they were asked about."""

    def __init__(self, providers: tuple[Provider, ...], book: CredentialBook) -> None:
        """Write what they say into ``book``."""
        self._providers = providers
        self._book = book
        self._lock = threading.Lock()
        self._until: dict[str, float] = {}

    @classmethod
    def load(cls, config: Path, folder: Path, book: CredentialBook) -> "Providers":
        """Read kubelet's configuration of them.

        Raises:
            LazyfsError: it is not one.
        """
        return cls(parse_config(config.read_bytes(), folder, os.fspath(config)), book)

    def ask_for(self, image: str) -> None:
        """Have credentials for an image, if a provider speaks for it and they are not at hand."""
        with self._lock:
            if self._until.get(image, 0.0) > time.monotonic():
                return
            for provider in self._providers:
                if not provider.matches(image):
                    continue
                try:
                    found, cache_s = provider.ask(image)
                    # As kubelet does, the longest pattern that matches decides.
                    for pattern in sorted(filter(None, found), key=len, reverse=True):
                        if matches(pattern, image):
                            self._book.add(image, found[pattern])
                            break
                except (CredentialError, OSError) as error:
                    log.warning("%s: no credentials: %s", image, error)
                    cache_s = LEAST_CACHE_S
                self._until.pop(image, None)
                self._until[image] = time.monotonic() + max(cache_s, LEAST_CACHE_S)
                while len(self._until) > MAX_ENTRIES:
                    del self._until[next(iter(self._until))]

    def renew(self) -> None:
        """Ask again where credentials have run out, since containers go on reading."""
        for image in list(self._until):
            self.ask_for(image)


def parse_config(raw: bytes, folder: Path, what: str) -> tuple[Provider, ...]:
    """The providers of a configuration.

    Raises:
        LazyfsError: it is not one.
    """
    if len(raw) > MAX_CONFIG_BYTES:
        raise LazyfsError(f"{what} is too long")
    document = _decode(raw, what)
    try:
        if document["kind"] != KIND or not str(document["apiVersion"]).startswith(API):
            raise LazyfsError(f"{what} is not a {KIND}")
        return tuple(_provider(entry, folder) for entry in _list(document["providers"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LazyfsError(f"{what}: {error!r}") from error


def _decode(raw: bytes, what: str) -> dict[str, object]:
    try:
        document = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise LazyfsError(f"{what}: {error}") from error
    if not isinstance(document, dict):
        raise LazyfsError(f"{what} is not a configuration")
    return document


def _provider(entry: object, folder: Path) -> Provider:
    if not isinstance(entry, dict):
        raise TypeError(f"{entry!r:.100} is not a provider")
    name = str(entry["name"])
    if not name or "/" in name or name in (".", ".."):
        raise ValueError(f"{name!r} is not the name of a provider")
    return Provider(
        program=folder / name,
        api_version=str(entry["apiVersion"]),
        patterns=tuple(map(str, _list(entry["matchImages"]))),
        arguments=tuple(map(str, _list(entry.get("args") or []))),
        environment={str(item["name"]): str(item["value"]) for item in entry.get("env") or []},
        cache_s=seconds(entry.get("defaultCacheDuration"), DEFAULT_CACHE_S),
    )


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.100} is not a list")
    return value


def matches(pattern: str, image: str) -> bool:
    """Whether kubelet's pattern speaks for an image.

    Host parts match one by one, with wildcards; a port must be the same, a path the beginning.
    """
    pattern = pattern.removeprefix("https://").removeprefix("http://")
    host, _, path = pattern.partition("/")
    name = _reference(image)
    registry = "docker.io" if name.registry == DOCKER_HUB else name.registry
    wanted, _, wanted_port = host.partition(":")
    found, _, found_port = registry.partition(":")
    parts, found_parts = wanted.split("."), found.split(".")
    return (
        len(parts) == len(found_parts)
        and all(map(fnmatch.fnmatchcase, found_parts, parts))
        and wanted_port == found_port
        and name.repository.startswith(path.rstrip("/"))
    )


def seconds(duration: object, default: float) -> float:
    """A duration as Go writes it, such as ``1h30m0s``.

    Raises:
        ValueError: it is none.
    """
    if duration is None:
        return default
    units = {"h": 3600.0, "m": 60.0, "s": 1.0}
    total, number = 0.0, ""
    for character in str(duration):
        if character in units and number:
            total += float(number) * units[character]
            number = ""
        elif character.isdigit() or character == ".":
            number += character
        else:
            raise ValueError(f"{duration!r:.100} is not a duration")
    if number not in ("", "0"):
        raise ValueError(f"{duration!r:.100} has no unit")
    return total

"""Finds what this machine says about a registry's hosts: ``certs.d`` folders."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from registry.errors import ConfigurationError
from registry.hosts import (
    HOSTS_FILE_LIMIT_BYTES,
    HostConfig,
    certificate_files,
    default_host,
    folder_names,
    parse_hosts_file,
)
from registry.reference import Reference

log = logging.getLogger(__name__)

DEFAULT_FOLDER = "_default"
MAX_CERTIFICATE_FILES = 64
CERTIFICATE_SUFFIXES = (".crt", ".cert", ".key")


def usual_folders(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Where ``HOST/hosts.toml`` may be: the user's, lazyfs's, containerd's, Docker's."""
    home = Path(environment.get("HOME") or "/")
    settings = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    return (
        settings / "lazyfs/certs.d",
        Path("/etc/lazyfs/certs.d"),
        Path("/etc/containerd/certs.d"),
        Path("/etc/docker/certs.d"),
    )


def find_hosts(reference: Reference, folders: Sequence[Path] | None) -> tuple[HostConfig, ...]:
    """The hosts that serve a registry's images, in the order in which they are asked (blocks).

    The first of ``folders`` that speaks of the registry decides; where none does, the first with a
    ``_default``.

    Raises:
        ConfigurationError: what is there cannot be used.
    """
    explicit = folders is not None
    roots = usual_folders(os.environ) if folders is None else folders
    names = folder_names(reference.registry)
    for places in (names, (DEFAULT_FOLDER,)):
        for root in roots:
            for name in places:
                hosts = _read_folder(root / name, reference.endpoint, explicit=explicit)
                if hosts:
                    log.debug("%s: hosts from %s", reference.registry, root / name)
                    return hosts
    return (default_host(reference.endpoint),)


def _read_folder(folder: Path, endpoint: str, *, explicit: bool) -> tuple[HostConfig, ...]:
    """What one folder says; nothing if it is not there."""
    path = folder / "hosts.toml"
    try:
        with path.open("rb") as file:
            raw = file.read(HOSTS_FILE_LIMIT_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return _read_certificates(folder, endpoint)
    except OSError as error:
        if not explicit and isinstance(error, PermissionError):
            # Another program's configuration, which is not meant for this user.
            log.warning("%s: passed over: %s", path, error.strerror)
            return ()
        raise ConfigurationError(f"{path}: {error.strerror or error}") from error
    if len(raw) > HOSTS_FILE_LIMIT_BYTES:
        raise ConfigurationError(f"{path}: longer than {HOSTS_FILE_LIMIT_BYTES} bytes")
    return parse_hosts_file(raw, str(folder), endpoint)


def _read_certificates(folder: Path, endpoint: str) -> tuple[HostConfig, ...]:
    try:
        names = sorted(
            path.name for path in folder.iterdir() if path.suffix in CERTIFICATE_SUFFIXES
        )
    except OSError:
        return ()
    if not names:
        return ()
    return (certificate_files(tuple(names[:MAX_CERTIFICATE_FILES]), str(folder), endpoint),)

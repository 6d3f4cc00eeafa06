"""Finds the credentials for a repository: credential files and helper programs of this machine."""

import logging
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import trio

from registry.credentials import (
    CONFIG_LIMIT_BYTES,
    HELPER_REPLY_LIMIT_BYTES,
    CredentialFile,
    Credentials,
    Helper,
    decode_credential_file,
    decode_helper_reply,
    find_credentials,
)
from registry.errors import ContentError, CredentialError

log = logging.getLogger(__name__)


def credential_files(environment: Mapping[str, str]) -> list[Path]:
    """Where credentials may be, in the order in which they are asked.

    ``REGISTRY_AUTH_FILE`` stands alone; otherwise Docker's file comes before those of podman and
    skopeo. ``LAZYFS_AUTH_FILE`` comes before all: what another program hands to us at the moment.
    """
    if first := environment.get("LAZYFS_AUTH_FILE"):
        rest = {name: value for name, value in environment.items() if name != "LAZYFS_AUTH_FILE"}
        return [Path(first), *credential_files(rest)]
    if explicit := environment.get("REGISTRY_AUTH_FILE"):
        return [Path(explicit)]
    home = Path(environment.get("HOME") or "/")
    docker = Path(environment.get("DOCKER_CONFIG") or home / ".docker")
    settings = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    files = [docker / "config.json"]
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        files.append(Path(runtime) / "containers/auth.json")
    return [*files, settings / "containers/auth.json"]


class Keychain:
    """The credentials for one repository of one host, as they are now.

    They are kept until a credential file changes or ``forget`` is called, since a helper program
    may take seconds.
    """

    def __init__(
        self,
        registry: str,
        repository: str,
        timeout_s: float,
        explicit: Credentials | None = None,
    ) -> None:
        """Look for ``registry``, unless there are ``explicit`` credentials."""
        self.registry = registry
        self._repository = repository
        self._timeout_s = timeout_s
        self._explicit = explicit
        self._found: Credentials | None = None
        self._stamp: tuple[object, ...] | None = None

    def forget(self) -> None:
        """Look credentials up again when they are wanted next: the known ones are refused."""
        self._stamp = None

    async def credentials(self) -> Credentials:
        """What is known; empty credentials if nothing is.

        Raises:
            CredentialError: a file or helper does not work, or says what makes no sense.
        """
        if self._explicit is not None:
            return self._explicit
        # Taken before the files are read: a change meanwhile is seen the next time.
        stamp = await trio.to_thread.run_sync(_stamp, credential_files(os.environ))
        if stamp != self._stamp:
            try:
                self._found = await look_up(self.registry, self._repository, self._timeout_s)
            except ContentError as error:  # of this machine: no host has lied
                raise CredentialError(str(error)) from error
            self._stamp = stamp
        return self._found or Credentials()


def _stamp(paths: list[Path]) -> tuple[object, ...]:
    """Something that differs once one of the files has been written."""
    stamps: list[object] = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            stamps.append((path, None))
        else:
            changed = (status.st_ino, status.st_size, status.st_mtime_ns)
            stamps.append((path, changed))
    return tuple(stamps)


async def look_up(registry: str, repository: str, timeout_s: float) -> Credentials | None:
    """The credentials for a repository, or None.

    Cancelled: a helper that runs is ended.

    Raises:
        CredentialError: a file or helper does not work.
        ContentError: a file is not a credential file.
    """
    for path in credential_files(os.environ):
        file = await trio.to_thread.run_sync(_read_file, path)
        found = find_credentials(file, registry, repository) if file else None
        if isinstance(found, Helper):
            found = await ask_helper(found, timeout_s)
        if found is not None:
            log.debug("%s: credentials from %s", registry, path)
            return found
    return None


def _read_file(path: Path) -> CredentialFile | None:
    try:
        with path.open("rb") as file:
            raw = file.read(CONFIG_LIMIT_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CredentialError(f"{path}: {error.strerror or error}") from error
    return decode_credential_file(raw, str(path)) if raw.strip() else None


async def ask_helper(helper: Helper, timeout_s: float) -> Credentials | None:
    """What ``docker-credential-NAME get`` answers (docker-credential-helpers, "Development").

    Cancelled: the helper is ended.

    Raises:
        CredentialError: it cannot be run, fails, or does not answer in time.
    """
    with trio.move_on_after(timeout_s or float("inf")):
        try:
            process = await trio.run_process(
                [helper.program, "get"],
                stdin=helper.server_url.encode(),
                capture_stdout=True,
                stderr=subprocess.DEVNULL,
                check=False,
            )
        except OSError as error:
            raise CredentialError(f"{helper.program}: {error.strerror or error}") from error
        if len(process.stdout) > HELPER_REPLY_LIMIT_BYTES:
            raise CredentialError(f"{helper.program}: answered {len(process.stdout)} bytes")
        return decode_helper_reply(process.stdout, process.returncode, helper)
    raise CredentialError(f"{helper.program}: no answer within {timeout_s:g} s")

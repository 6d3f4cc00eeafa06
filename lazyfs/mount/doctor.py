"""Looks for what is wrong: on this machine, in the cache folder, with mounts of this user.

No check looks into a mount, so that a sick one cannot hang the doctor.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cache.directory import DirectoryStore
from cache.errors import CacheError
from lazyfs.errors import MountError
from lazyfs.fuse.kernelmount import DEVICE
from lazyfs.mount.census import census
from lazyfs.mount.changes import left_changes
from lazyfs.mount.mountinfo import current_mounts, is_lazyfs
from lazyfs.mount.options import default_cache_dir
from lazyfs.mount.runtime import KnownMount, base_folder, known_mounts

OK, WARNING, PROBLEM = "ok", "warning", "problem"

RESENDING_KERNEL = (6, 9)
"""The first Linux that sends requests again to the next daemon."""

LOW_SPACE_BYTES = 1 << 30

Document = dict[str, object]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found."""

    level: str
    """``ok``; ``warning``: it works, but not as well as it could; ``problem``."""
    about: str
    text: str
    """What was found, and what to do about it."""


async def examine() -> list[Finding]:
    """All findings, those about the machine first."""
    findings = [_device(), _helper(), _kernel()]
    try:
        folder = base_folder()
    except MountError as error:
        return [*findings, Finding(PROBLEM, "runtime folder", str(error))]
    findings += _folders(folder, known_mounts())
    findings += _foreign_mounts()
    documents = census(None)
    places = {default_cache_dir(), *_cache_folders(documents)}
    for place in sorted(places):
        findings.append(await _cache(place))
    for document in documents:
        findings += _mount(document)
    return findings


def _device() -> Finding:
    about = DEVICE
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Finding(PROBLEM, about, "it is missing: modprobe fuse, or give it to the container")
    except OSError as error:
        return Finding(PROBLEM, about, f"it cannot be opened: {error.strerror}; its mode is 0666")
    return Finding(OK, about, "can be opened")


def _helper() -> Finding:
    about = "fusermount3"
    place = shutil.which("fusermount3")
    if place is not None:
        return Finding(OK, about, place)
    if os.geteuid() == 0:
        return Finding(OK, about, "not installed; only users other than root need it")
    return Finding(
        PROBLEM,
        about,
        "it is missing, and mounting without root needs it: install the package fuse3",
    )


def _kernel() -> Finding:
    release = os.uname().release
    numbers = release.split("-")[0].split(".")
    version = tuple(int(number) for number in numbers[:2] if number.isdigit())
    if version >= RESENDING_KERNEL:
        return Finding(OK, "kernel", f"Linux {release} sends requests again to a new daemon")
    return Finding(
        WARNING,
        "kernel",
        f"Linux {release} cannot send requests again, so mounts do "
        "not survive their daemon; 6.9 and later can",
    )


def _folders(base: Path, mounts: list[KnownMount]) -> Iterator[Finding]:
    """What is left of mounts in the runtime folder."""
    known = {mount.folder.path for mount in mounts}
    for mount in mounts:
        if mount.alive or mount.local:
            continue
        if mount.mounted:
            yield Finding(
                PROBLEM,
                mount.state.mountpoint,
                "a dead mount: its processes are gone; "
                f"lazyfs umount {mount.state.mountpoint} removes it",
            )
        else:
            yield Finding(
                WARNING,
                os.fspath(mount.folder.path),
                "left by a mount that is gone; the next lazyfs mount removes it",
            )
    for place in left_changes():
        yield Finding(
            WARNING,
            os.fspath(place),
            "left by a mount with --rw that is gone; the next lazyfs mount removes it",
        )
    for path in sorted(base.iterdir()):
        if path not in known and not path.name.startswith("."):
            yield Finding(WARNING, os.fspath(path), "not the folder of any mount; remove it")
    yield Finding(OK, "runtime folder", f"{base}: {len(mounts)} mounts")


def _foreign_mounts() -> Iterator[Finding]:
    """Mounts of ours of which nothing is known."""
    mine = {mount.state.device for mount in known_mounts()}
    for entry in current_mounts():
        if is_lazyfs(entry) and entry.device not in mine:
            yield Finding(
                WARNING,
                entry.mountpoint,
                f"{entry.source}: another user's mount, or one "
                f"whose runtime folder is gone; then umount -l {entry.mountpoint}",
            )


def _cache_folders(documents: list[Document]) -> Iterator[Path]:
    for document in documents:
        cache = document.get("cache")
        if isinstance(cache, dict) and isinstance(cache.get("path"), str):
            yield Path(cache["path"])


async def _cache(place: Path) -> Finding:
    about = f"cache {place}"
    if not _is_there(place):
        return Finding(OK, about, "not there yet; the first mount makes it")
    try:
        with await DirectoryStore.open(place, None) as store:
            used = store.usage_bytes()
    except CacheError as error:
        return Finding(PROBLEM, about, f"mounts do without it: {error}")
    if not os.access(place / "tmp", os.W_OK):
        return Finding(PROBLEM, about, "nothing can be written to it; is its disk read-only?")
    free = os.statvfs(place)
    free_bytes = free.f_bavail * free.f_frsize
    text = f"{_size(used)} used, {_size(free_bytes)} free on its disk"
    if free_bytes < LOW_SPACE_BYTES:
        return Finding(WARNING, about, f"{text}: make room, or lower --cache-size")
    return Finding(OK, about, text)


def _is_there(place: Path) -> bool:
    return place.is_dir()


def _mount(document: Document) -> Iterator[Finding]:
    """What a mount's daemon, or its folder, tells."""
    about = str(document["mountpoint"])
    if document["state"] == "dead":
        return  # it was found already
    if document["state"] in ("silent", "restarting", "detached"):
        level = PROBLEM if document["state"] == "silent" else WARNING
        yield Finding(level, about, f"{document['state']}: {document.get('problem') or 'in use'}")
    else:
        yield Finding(OK, about, f"{document['state']}: {document['image']}")
    survival = document.get("survival")
    if isinstance(survival, dict) and not survival.get("survives"):
        yield Finding(WARNING, about, f"does not survive its daemon: {survival.get('why')}")
    if document.get("resolution"):
        yield Finding(WARNING, about, str(document["resolution"]))
    hosts = document.get("hosts")
    for host in hosts if isinstance(hosts, list) else []:
        if isinstance(host, dict):
            yield _host(about, host)
    totals = document.get("totals")
    if isinstance(totals, dict) and totals.get("verification_failures"):
        yield Finding(
            PROBLEM,
            about,
            f"{totals['verification_failures']} times wrong bytes were "
            f"found and not served; lazyfs status {about} says more",
        )


def _host(about: str, host: Document) -> Finding:
    who = f"{host.get('role')} {host.get('host')}"
    if host.get("state") == "ok":
        return Finding(OK, about, f"{who} answers, or was not asked yet")
    return Finding(PROBLEM, about, f"{who} is {host.get('state')}: {host.get('last_problem')}")


def _size(count: float) -> str:
    return f"{count / (1 << 30):.1f} GiB"

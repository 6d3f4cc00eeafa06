"""What a user can choose about a mount.

The options cross from the ``lazyfs mount`` command to the daemon as JSON on its command
line; unknown or missing keys there are a bug, since both sides are the same program.
"""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

from cache.freespace import DEFAULT_MIN_FREE, MinFree
from lazyfs.model import VerifyMode
from registry.interfaces import Access

DEFAULT_CACHE_SIZE_BYTES = 10 << 30
DEFAULT_TIMEOUT_S = 30.0
PREFETCH_CHOICES = ("none", "guess", "profile", "all")
FUSE, KERNEL, AUTO = "fuse", "kernel", "auto"
DRIVER_CHOICES = (FUSE, KERNEL, AUTO)
ON_TIMEOUT_CHOICES = ("eio", "etimedout")


def default_cache_dir() -> Path:
    """Where chunks are kept: ``/var/cache/lazyfs`` for root, the user's cache folder otherwise."""
    if os.geteuid() == 0 and os.access("/var/cache", os.W_OK):
        return Path("/var/cache/lazyfs")
    import platformdirs  # only now: root needs it not

    return platformdirs.user_cache_path("lazyfs")


@dataclass(frozen=True, slots=True)
class MountOptions:
    """The choices for one mount."""

    cache_dir: Path = dataclasses.field(default_factory=default_cache_dir)
    cache_size_bytes: int | None = DEFAULT_CACHE_SIZE_BYTES
    """Limit of the store in ``cache_dir``; None: no limit."""
    cache_min_free: MinFree = DEFAULT_MIN_FREE
    """What the disk of ``cache_dir`` should keep free."""
    verify: VerifyMode = VerifyMode.ALWAYS
    platform: str | None = None
    """``OS/ARCH[/VARIANT]``; None: this machine's."""
    timeout_s: float = DEFAULT_TIMEOUT_S
    """How long one file system request, or opening the image, may wait; 0: for ever."""
    prefetch: str = "profile"
    """``none``; ``guess`` what will be read; ``profile``: before that, what the image's profile
    names; or ``all``: then all of it."""
    prefetch_bytes_per_s: float = 0
    """Of blobs, for what is fetched behind the profile; 0: as fast as it comes."""
    profile: Path | None = None
    """The profile; None: the one that was pushed with the image, if there is one."""
    plain_http: bool = False
    """Speak HTTP without TLS to any registry, not only to loopback names."""
    hosts_dir: Path | None = None
    """Folder with ``HOST/hosts.toml``; None: the usual ones of this machine."""
    allow_other: bool = False
    """Let other users into the mount (root's mounts always do)."""
    suid: bool = False
    """Honour set-user-ID bits in the image."""
    dev: bool = False
    """Honour device nodes in the image."""
    on_timeout: str = ON_TIMEOUT_CHOICES[0]
    """What a reader gets after ``timeout_s``: ``eio`` or ``etimedout``."""
    layers: bool = False
    """Show each layer in a directory of its own, instead of the tree that they make."""
    metrics: str | None = None
    """Where to serve metrics (``lazyfs.mount.metricsaddress``); None: nowhere."""
    driver: str = FUSE
    """What serves the files: ``fuse``, ``kernel``, or ``auto``: the second where it can be had."""
    promote: bool = False
    """With the driver ``kernel``: make the layers local files once all of them is here."""
    pin: str | None = None
    """No choice of the user: exactly what was mounted (``MountedImage.pin``), where a daemon takes
    a mount over; None: what the image's name means now."""

    def access(self) -> Access:
        """How to reach the registry."""
        folders = None if self.hosts_dir is None else (self.hosts_dir,)
        return Access(
            plain_http=self.plain_http,
            timeout_s=self.timeout_s,
            hosts_dirs=folders,
            worked_before=self.pin is not None,  # whoever takes a mount over
        )

    def to_json(self) -> str:
        """One line that ``from_json`` reads."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return json.dumps(
            values
            | {
                "cache_dir": os.fspath(self.cache_dir),
                "verify": self.verify.value,
                "hosts_dir": self.hosts_dir and os.fspath(self.hosts_dir),
                "profile": self.profile and os.fspath(self.profile),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "MountOptions":
        """The options that ``to_json`` wrote.

        Raises:
            TypeError, ValueError, KeyError: another program wrote it.
        """
        values = json.loads(text)
        return cls(
            **values
            | {
                "cache_dir": Path(values["cache_dir"]),
                "cache_min_free": MinFree(*values["cache_min_free"]),
                "verify": VerifyMode(values["verify"]),
                "hosts_dir": values["hosts_dir"] and Path(values["hosts_dir"]),
                "profile": values["profile"] and Path(values["profile"]),
            }
        )

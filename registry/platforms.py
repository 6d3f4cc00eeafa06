"""Platforms: what an image is made for, and which of several fits what is wanted.

Names are those of Go's ``GOOS`` and ``GOARCH`` (image-spec, image-index.md).
"""

import platform as host
import re
import sys
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple

from registry.errors import InvalidReferenceError
from registry.jsondoc import Json, JsonObject, take_string, take_strings

FEATURES_LIMIT = 64

_ARCHITECTURES = MappingProxyType(
    {
        "x86_64": ("amd64", ""),
        "x86-64": ("amd64", ""),
        "aarch64": ("arm64", ""),
        "armhf": ("arm", "v7"),
        "armel": ("arm", "v6"),
        "armv8l": ("arm", "v8"),
        "armv7l": ("arm", "v7"),
        "armv6l": ("arm", "v6"),
        "armv5tel": ("arm", "v5"),
        "i386": ("386", ""),
        "i486": ("386", ""),
        "i586": ("386", ""),
        "i686": ("386", ""),
        "loongarch64": ("loong64", ""),
    }
)
"""Names that machines and people use for an architecture of ours, and the variant they imply."""

_BASE_VARIANT = MappingProxyType({"arm64": "v8", "amd64": "v1", "arm": "v7"})
"""What an architecture without a variant means (as containerd reads it)."""

_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_VARIANT = re.compile(r"v([0-9]{1,2})(?:\.([0-9]{1,2}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Platform:
    """What a manifest is made for, or what a user wants."""

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()
    extra: dict[str, Json] = field(default_factory=dict, hash=False)
    """Fields that this client does not know, kept for rewriting."""

    def __str__(self) -> str:
        name = f"{self.os}/{self.architecture}" + (f"/{self.variant}" if self.variant else "")
        return f"{name}[{','.join(self.os_features)}]" if self.os_features else name

    def normalized(self) -> "Platform":
        """The same platform by its usual names (``x86_64`` is ``amd64``)."""
        architecture = self.architecture.lower()
        known, implied = _ARCHITECTURES.get(architecture, (architecture, ""))
        return replace(
            self,
            os=self.os.lower(),
            architecture=known,
            variant=self.variant.lower() or implied,
        )


class Rank(NamedTuple):
    """How well an offered platform fits; the smallest is the best."""

    wanted_features_missing: int
    other_features: int
    variant_steps: int
    """How far the offered variant lies below the wanted one."""


def parse_platform(text: str) -> Platform:
    """Read ``OS/ARCHITECTURE[/VARIANT]``, or an architecture alone for Linux.

    Raises:
        InvalidReferenceError: anything else.
    """
    words = text.split("/")
    if len(words) > 3 or not all(_WORD.fullmatch(word) for word in words):
        raise InvalidReferenceError(
            f"not a platform: {text[:80]!r} (write for example linux/arm64/v8)"
        )
    if len(words) == 1:
        words.insert(0, "linux")
    system, architecture, *variant = words
    return Platform(system, architecture, "".join(variant)).normalized()


def host_platform() -> Platform:
    """The platform that this machine runs."""
    return Platform(
        "linux" if sys.platform == "linux" else sys.platform, host.machine()
    ).normalized()


def _variant_number(architecture: str, variant: str) -> tuple[int, int] | None:
    match = _VARIANT.fullmatch(variant or _BASE_VARIANT.get(architecture, ""))
    return (int(match[1]), int(match[2] or 0)) if match else None


def _variant_steps(architecture: str, wanted: str, offered: str) -> int | None:
    """0 for the same variant, more for an older one, None for one that need not run."""
    want = _variant_number(architecture, wanted)
    have = _variant_number(architecture, offered)
    if want is None or have is None:
        return 0 if wanted == offered else None
    if have > want:
        return None
    return (want[0] - have[0]) * 100 + want[1] - have[1]


def rank(wanted: Platform, offered: Platform) -> Rank | None:
    """How well ``offered`` serves one who wants ``wanted``; None when it does not.

    Features of the operating system only rank: an image that names a feature nobody asked
    for is worse than one that does not, but better than none (what it means is for the
    one who reads the layers to say).
    """
    want, have = wanted.normalized(), offered.normalized()
    if (want.os, want.architecture) != (have.os, have.architecture):
        return None
    if want.os_version and want.os_version != have.os_version:
        return None
    steps = _variant_steps(want.architecture, want.variant, have.variant)
    if steps is None:
        return None
    asked, given = set(want.os_features), set(have.os_features)
    return Rank(len(asked - given), len(given - asked), steps)


def decode_platform(document: JsonObject, what: str) -> Platform:
    """Read the ``platform`` object of a descriptor.

    Raises:
        ContentError: a field of another kind.
    """
    rest = dict(document)
    return Platform(
        os=take_string(rest, "os", what),
        architecture=take_string(rest, "architecture", what),
        variant=take_string(rest, "variant", what),
        os_version=take_string(rest, "os.version", what),
        os_features=take_strings(rest, "os.features", what, FEATURES_LIMIT),
        extra=rest,
    )


def encode_platform(platform: Platform) -> JsonObject:
    """The ``platform`` object of a descriptor."""
    document: JsonObject = {"architecture": platform.architecture, "os": platform.os}
    if platform.os_version:
        document["os.version"] = platform.os_version
    if platform.os_features:
        document["os.features"] = list(platform.os_features)
    if platform.variant:
        document["variant"] = platform.variant
    return document | {key: platform.extra[key] for key in sorted(platform.extra)}

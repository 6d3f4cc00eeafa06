"""What the command asks of the daemon, as it crosses between the two processes."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from lazyfs.mount.options import MountOptions
from lazyfs.mount.runtime import RuntimeFolder

PATH_SCHEMES = ("oci", "oci-archive", "docker-archive", "erofs")
"""Image names that are paths; ``erofs`` may go on with ``,device=FILE``."""

DEVICE_SEPARATOR = ",device="


@dataclass(frozen=True, slots=True)
class MountRequest:
    """What to mount where; the mountpoint is a real path that was checked."""

    image: str
    mountpoint: str
    options: MountOptions
    folder: RuntimeFolder

    def to_json(self) -> str:
        """One line that ``from_json`` reads."""
        return json.dumps(
            {
                "image": self.image,
                "mountpoint": self.mountpoint,
                "options": self.options.to_json(),
                "folder": os.fspath(self.folder.path),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "MountRequest":
        """The request that ``to_json`` wrote.

        Raises:
            KeyError, TypeError, ValueError: another program wrote it.
        """
        values = json.loads(text)
        return cls(
            image=values["image"],
            mountpoint=values["mountpoint"],
            options=MountOptions.from_json(values["options"]),
            folder=RuntimeFolder(Path(values["folder"])),
        )


def about(request: MountRequest) -> dict[str, object]:
    """Which mount a log line is about."""
    return {"mountpoint": request.mountpoint, "image": request.image, "pid": os.getpid()}


def absolute_image(name: str, base: Path) -> str:
    """The image name with its paths made absolute: a daemon has no use for where it began."""
    scheme, colon, rest = name.partition(":")
    if scheme not in PATH_SCHEMES or not colon:
        return name
    paths = rest.split(DEVICE_SEPARATOR) if scheme == "erofs" else [rest]
    return f"{scheme}:" + DEVICE_SEPARATOR.join(os.fspath(base / path) for path in paths)

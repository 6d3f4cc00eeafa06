"""What loop devices stand on, as the kernel tells it; free of imports that cost memory."""

from collections.abc import Mapping

UNLINKED = " (deleted)"
"""Behind the path of a file without a name; a layer file of a daemon always has one."""


def are_local(loops: Mapping[str, str] | None) -> bool:
    """Whether all of some loop devices are in use, and stand on local files without a name.

    Args:
        loops: the devices of a mount, by the layer files that they stood on first; None: it
            has no such devices.
    """
    devices = loops.values() if loops else ()
    return bool(devices) and all(_backing_of(device).endswith(UNLINKED) for device in devices)


def _backing_of(device: str) -> str:
    name = device.rpartition("/")[2]
    try:
        with open(f"/sys/block/{name}/loop/backing_file") as file:  # noqa: PTH123
            return file.read().rstrip("\n")
    except OSError:  # it is nobody's any more
        return ""

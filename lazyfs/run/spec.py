"""From an image's configuration and the user's choices to the runtime specification's config.json.

Sources: the OCI image specification (config.md), the OCI runtime specification (config.md,
config-linux.md), and Docker's defaults for capabilities and paths (moby, oci/defaults.go).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from lazyfs.errors import RunError
from lazyfs.run.users import User
from registry.jsondoc import Json, JsonObject

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NETWORKS = ("host", "none")
CPU_PERIOD_US = 100_000

CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID"),
    *("SETFCAP", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"),
)
MASKED_PATHS = (
    *("/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys"),
    *("/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug"),
    *("/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"),
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What an image says about its containers."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    user: str = ""
    working_directory: str = ""
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""


class Bind(NamedTuple):
    """A file or folder of the host in the container."""

    source: str
    destination: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class Choices:
    """What the user wants of one container."""

    hostname: str
    command: Sequence[str] = ()
    entrypoint: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    working_directory: str | None = None
    binds: Sequence[Bind] = ()
    read_only: bool = False
    terminal: tuple[int, int] | None = None
    """Columns and lines; None: it has no terminal."""
    network: str = NETWORKS[0]
    memory_bytes: int | None = None
    cpus: float | None = None
    in_user_namespace: bool = False
    """It is run by root of a user namespace, who may do less."""
    devices_limited: bool = True
    """The kernel can be told (by a cgroup) which devices the container may use."""


def parse_config(document: JsonObject) -> ImageConfig:
    """What an image's configuration says (its ``config`` object).

    Raises:
        RunError: something in there is of another kind than it should be.
    """
    config = document.get("config") or {}
    if not isinstance(config, dict):
        raise RunError("the image's configuration is broken: config")
    volumes = config.get("Volumes") or {}
    if not isinstance(volumes, dict):
        raise RunError("the image's configuration is broken: Volumes")
    return ImageConfig(
        entrypoint=_words(config, "Entrypoint"),
        command=_words(config, "Cmd"),
        environment=_words(config, "Env"),
        user=_word(config, "User"),
        working_directory=_word(config, "WorkingDir"),
        volumes=tuple(sorted(volumes)),
        stop_signal=_word(config, "StopSignal"),
    )


def _words(config: JsonObject, name: str) -> tuple[str, ...]:
    value = config.get(name) or []
    words = [word for word in value if isinstance(word, str)] if isinstance(value, list) else None
    if words is None or words != value or any("\0" in word for word in words):
        raise RunError(f"the image's configuration is broken: {name}")
    return tuple(words)


def _word(config: JsonObject, name: str) -> str:
    value = config.get(name) or ""
    if not isinstance(value, str) or "\0" in value:
        raise RunError(f"the image's configuration is broken: {name}")
    return value


def command_line(config: ImageConfig, choices: Choices) -> list[str]:
    """What is run.

    Raises:
        RunError: neither the image nor the user says.
    """
    if choices.entrypoint is not None:
        words = [*([choices.entrypoint] if choices.entrypoint else []), *choices.command]
    else:
        words = [*config.entrypoint, *(choices.command or config.command)]
    if not words:
        raise RunError("the image names no command, so one must be given")
    return words


def environment(config: ImageConfig, choices: Choices, user: User) -> list[str]:
    """The variables, ``NAME=VALUE``: the image's, what a shell expects, then the user's."""
    values = {"PATH": DEFAULT_PATH, "HOSTNAME": choices.hostname}
    if choices.terminal is not None:
        values["TERM"] = "xterm"
    for word in config.environment:
        name, _, value = word.partition("=")
        values[name] = value
    values.setdefault("HOME", user.home)
    return [f"{name}={value}" for name, value in (values | dict(choices.environment)).items()]


def runtime_spec(
    config: ImageConfig, choices: Choices, user: User, root: str, files: Sequence[Bind]
) -> JsonObject:
    """The config.json of a container.

    Args:
        config: of the image.
        choices: of the user of lazyfs.
        user: who its process is.
        root: the root directory.
        files: what the container gets of its own, such as /etc/hosts.

    Raises:
        RunError: as ``command_line``, or a path is not absolute.
    """
    directory = choices.working_directory or config.working_directory or "/"
    for path in (directory, *config.volumes, *(bind.destination for bind in choices.binds)):
        if not path.startswith("/"):
            raise RunError(f"{path!r} is not an absolute path")
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": choices.terminal is not None,
            **_console_size(choices),
            "user": {
                "uid": user.uid,
                "gid": user.gid,
                "additionalGids": [] if choices.in_user_namespace else list(user.groups),
            },
            "args": list(command_line(config, choices)),
            "env": list(environment(config, choices, user)),
            "cwd": directory,
            "capabilities": _capabilities(user, choices),
            "noNewPrivileges": False,
        },
        "root": {"path": root, "readonly": choices.read_only},
        "hostname": choices.hostname,
        "mounts": [
            *_system_mounts(choices),
            *(_bind(bind) for bind in files),
            *(_volume(path) for path in config.volumes if choices.read_only),
            *(_bind(bind) for bind in choices.binds),
        ],
        "linux": {
            "namespaces": [
                {"type": kind}
                for kind in ("pid", "ipc", "uts", "mount", "network")
                if kind != "network" or choices.network == "none"
            ],
            "resources": _resources(choices),
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READONLY_PATHS),
        },
    }


def _console_size(choices: Choices) -> JsonObject:
    if choices.terminal is None:
        return {}
    columns, lines = choices.terminal
    return {"consoleSize": {"width": columns, "height": lines}}


def _capabilities(user: User, choices: Choices) -> JsonObject:
    """Those of Docker; making devices is for those only whom the kernel keeps from using them."""
    names: list[Json] = [
        f"CAP_{name}" for name in CAPABILITIES if name != "MKNOD" or choices.devices_limited
    ]
    own = names if user.uid == 0 else []
    return {"bounding": names, "effective": own, "permitted": own}


def _system_mounts(choices: Choices) -> list[Json]:
    closed = ("nosuid", "noexec", "nodev")
    group = () if choices.in_user_namespace else ("gid=5",)
    terminals = ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", *group)
    # Root of a user namespace may mount no sysfs of the host's network.
    borrowed = choices.in_user_namespace and choices.network == "host"
    system = (
        _mount("/sys", "none", "/sys", ("rbind", *closed, "ro"))
        if borrowed
        else _mount("/sys", "sysfs", "sysfs", (*closed, "ro"))
    )
    device = ("nosuid", "strictatime", "mode=755", "size=65536k")
    memory = (*closed, "mode=1777", "size=65536k")
    return [
        _mount("/proc", "proc", "proc", closed),
        _mount("/dev", "tmpfs", "tmpfs", device),
        _mount("/dev/pts", "devpts", "devpts", terminals),
        system,
        _mount("/dev/mqueue", "mqueue", "mqueue", closed),
        _mount("/dev/shm", "tmpfs", "shm", memory),  # noqa: S108 - the container's
    ]


def _volume(path: str) -> Json:
    """A volume of a read-only root: in memory, with what the image has there."""
    return _mount(path, "tmpfs", "tmpfs", ("nosuid", "nodev", "tmpcopyup"))


def _bind(bind: Bind) -> Json:
    options = ("rbind", "rprivate", "ro" if bind.read_only else "rw")
    return _mount(bind.destination, "bind", bind.source, options)


def _mount(destination: str, kind: str, source: str, options: Sequence[str]) -> Json:
    return {
        "destination": destination,
        "type": kind,
        "source": source,
        "options": list(options),
    }


def _resources(choices: Choices) -> JsonObject:
    resources: JsonObject = {}
    if choices.devices_limited:
        resources["devices"] = [{"allow": False, "access": "rwm"}]
    if choices.memory_bytes is not None:
        resources["memory"] = {"limit": choices.memory_bytes}
    if choices.cpus is not None:
        quota_us = int(choices.cpus * CPU_PERIOD_US)
        resources["cpu"] = {"quota": quota_us, "period": CPU_PERIOD_US}
    return resources

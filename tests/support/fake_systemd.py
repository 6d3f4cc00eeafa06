"""As much of systemd as a service sees of it: messages, a descriptor store, a watchdog."""

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.mounting import COMMAND_WITHIN_S, PROGRAM

WATCHDOG_S = 4

WRAPPER = 'number=$1; shift; LISTEN_PID=$$ exec "$@" 3<&"$number"'
"""The descriptor becomes number 3, and the process learns that it is meant."""


@dataclass
class FakeSystemd:
    """Runs one service, again and again."""

    listener: socket.socket
    address: str
    messages: list[dict[str, str]] = field(default_factory=list)
    store: dict[str, int] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None

    def start(self, *words: str | Path) -> int:
        """Run ``lazyfs`` as a service, with what is in the store; return its process."""
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": self.address,
            "WATCHDOG_USEC": str(WATCHDOG_S * 1_000_000),
        }
        command = [*PROGRAM, *(os.fspath(word) for word in words)]
        if self.store:
            [(name, descriptor)] = self.store.items()
            environment |= {"LISTEN_FDS": "1", "LISTEN_FDNAMES": name}
            command = ["bash", "-c", WRAPPER, "bash", str(descriptor), *command]
        self.messages.clear()
        self.process = subprocess.Popen(
            command,
            env=environment,
            pass_fds=tuple(self.store.values()),
            stderr=subprocess.PIPE,
        )
        return self.process.pid

    def wait_for(self, key: str) -> dict[str, str]:
        """The next message with a key; those on the way to it are acted on."""
        while True:
            message = self.receive()
            if key in message:
                return message

    def receive(self) -> dict[str, str]:
        """Take one message in.

        Raises:
            TimeoutError: none comes.
        """
        data, descriptors, _, _ = socket.recv_fds(self.listener, 1 << 16, 4)
        message = dict(line.split("=", 1) for line in data.decode().splitlines())
        self.messages.append(message)
        if "FDSTOREREMOVE" in message:
            os.close(self.store.pop(message["FDNAME"], os.open("/dev/null", os.O_RDONLY)))
        for descriptor in descriptors:
            assert message["FDSTORE"] == "1"
            self.store[message["FDNAME"]] = descriptor
        return message

    def receive_all(self) -> None:
        """Take in what was sent so far."""
        self.listener.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.receive()
        self.listener.settimeout(COMMAND_WITHIN_S)

    def wait(self) -> tuple[int, str]:
        """Exit status and standard error of the service."""
        assert self.process is not None
        _, said = self.process.communicate(timeout=COMMAND_WITHIN_S)
        return self.process.returncode, said.decode()

    def forget(self) -> None:
        """Empty the store, as when the service is stopped."""
        while self.store:
            os.close(self.store.popitem()[1])


@contextlib.contextmanager
def fake_systemd(folder: Path) -> Iterator[FakeSystemd]:
    """Be systemd; in the end the service is gone, and what it had in the store too."""
    address = os.fspath(folder / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.settimeout(COMMAND_WITHIN_S)
        manager = FakeSystemd(listener, address)
        try:
            yield manager
        finally:
            manager.forget()
            if manager.process is not None:
                manager.process.kill()
                manager.process.communicate()

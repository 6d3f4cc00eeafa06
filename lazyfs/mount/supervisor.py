"""The small process that keeps a mount alive when its daemon dies.

It holds a copy of the mount's descriptor, so that the kernel lets readers wait instead of failing
them, and starts the next daemon with it. It listens to its daemon as systemd listens to a service
(sd_notify: ``READY``, ``FDSTORE``, ``WATCHDOG``, ``STATUS``), so that a daemon need not know
which of the two keeps its mount.

A daemon's exit status says what it was: 0, the mount is over; ``HANDED_OVER``, another daemon
shall go on; anything else, or a signal, a death. SIGTERM, SIGINT and SIGHUP end the mount, SIGUSR1
replaces the daemon.

Run as a file, with few imports and nothing that the daemon does in the same process: it lives as
long as the mount, and there is one for each.
"""

import json
import os
import select
import signal
import socket
import sys
import time

if not __package__:
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))  # noqa: PTH100, PTH120 - pathlib costs memory

from lazyfs.mount import roles
from lazyfs.mount.restarts import Restarts
from lazyfs.mount.supervision import (
    DIED,
    ENDING_SIGNALS,
    GAVE_UP,
    HANDED_OVER,
    LOCAL,
    NO_CHILD,
    PAUSING,
    REPORT_NAME,
    RESTART_SIGNAL,
    SERVING,
    STARTING,
    WATCHDOG_S,
)

END_WITHIN_S = 9.0
"""How long a daemon may take to end the mount; less than who ends a supervisor waits for it."""

HAND_OVER_WITHIN_S = 5.0

CRASHES_SOON_S = 5.0
MAX_CRASHES = 3
"""So many daemons in a row that crash within so short a time suspect the requests they had."""

MAX_MESSAGE_BYTES = 64 << 10
MAX_STATUS_CHARACTERS = 2000
_DESCRIPTOR_BYTES = 4


class Supervisor:
    """One mount's supervisor."""

    def __init__(self, folder: str, lock: int, report: int, first: str, command: list[str]) -> None:
        """Supervise the mount of a runtime folder.

        Args:
            folder: the runtime folder.
            lock: descriptor of its lock; daemons share it.
            report: descriptor for the first daemon, on which it talks to who mounts; -1: it has it.
            first: the first daemon, our child, and the line to it ("PROCESS:DESCRIPTOR"), or
                ``NO_CHILD``: it is to be started.
            command: starts a daemon.
        """
        self._folder = folder
        self._lock = lock
        self._report = report
        self._command = command
        self._device: int | None = None
        self._was_ready = False
        self._ending = False
        self._handing_over = False
        self._phase = STARTING
        self._child: int | None = None
        self._pidfd = -1
        self._ear = socket.socket(socket.AF_UNIX)
        self._deadline_s: float | None = None
        self._restarts = Restarts()
        self._status = ""
        self._last_end = ""
        self._deaths = 0
        self._served_since_s = 0.0
        self._crashes = 0
        self._signals, wake_up = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_up, warn_on_full_buffer=False)
        signals = (*ENDING_SIGNALS, RESTART_SIGNAL)
        for number in signals:
            signal.signal(number, lambda _number, _frame: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)  # who started us holds them back
        self._first = first

    def run(self) -> int:
        """Supervise until the mount is over; return the exit status."""
        if self._first == NO_CHILD:
            self._start()
        else:
            child, line = self._first.split(":")
            self._adopt(int(child), socket.socket(fileno=int(line)))
        while True:
            watch = select.poll()
            watch.register(self._signals, select.POLLIN)
            if self._child is not None:
                watch.register(self._pidfd, select.POLLIN)
                if self._ear.fileno() >= 0:
                    watch.register(self._ear, select.POLLIN)
            if self._device is not None and self._phase != SERVING:
                # Not while a daemon serves: the kernel would wake us for each request.
                watch.register(self._device, 0)
            ready = dict(watch.poll(self._patience_ms()))
            if self._ear.fileno() in ready:
                self._listen()
            if self._signals in ready:
                self._obey(os.read(self._signals, 64))
            if self._device in ready and self._child is not None:
                self._kill(signal.SIGKILL)  # unmounted meanwhile: it would have nothing to serve
            if self._child is not None and self._pidfd in ready:
                status = self._bury()
                if status is not None:
                    return status
            elif self._child is None and (self._ending or self._device in ready):
                return self._finish()
            elif self._is_late():
                status = self._act_on_time()
                if status is not None:
                    return status

    def _patience_ms(self) -> float | None:
        if self._deadline_s is None:
            return None
        return max(0.0, self._deadline_s - time.monotonic()) * 1000

    def _is_late(self) -> bool:
        return self._deadline_s is not None and time.monotonic() >= self._deadline_s

    def _act_on_time(self) -> int | None:
        self._deadline_s = None
        if self._child is None:
            self._start()
        else:
            if not (self._ending or self._handing_over):
                self._say(f"the daemon was silent for {WATCHDOG_S:g} s: killing it")
            self._kill(signal.SIGKILL)
        return None

    def _start(self) -> None:
        """Start a daemon."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        inherited = [self._lock, theirs.fileno()]
        words = [*self._command, "--lock-fd", str(self._lock), "--keeper-fd", str(theirs.fileno())]
        if self._device is not None:
            words += ["--fuse-fd", str(self._device)]
            inherited.append(self._device)
        if self._report >= 0:
            words += ["--report-fd", str(self._report)]
            inherited.append(self._report)
        child = os.fork()
        if child == 0:
            try:
                for descriptor in inherited:
                    os.set_inheritable(descriptor, True)
                os.execv(words[0], words)  # noqa: S606 - no shell wanted
            finally:
                os._exit(127)
        theirs.close()
        if self._report >= 0:
            os.close(self._report)
            self._report = -1
        self._adopt(child, ours)

    def _adopt(self, child: int, ear: socket.socket) -> None:
        """Begin with a daemon that was started."""
        ear.set_inheritable(False)
        self._phase, self._handing_over = STARTING, False
        self._deadline_s = time.monotonic() + WATCHDOG_S
        self._ear.close()
        self._ear = ear
        self._child = child
        self._pidfd = os.pidfd_open(child)
        self._write_report()

    def _kill(self, number: signal.Signals) -> None:
        if self._child is not None:  # not waited for yet, so the number is still its
            os.kill(self._child, number)

    def _obey(self, numbers: bytes) -> None:
        """Act on signals."""
        for number in numbers:
            if number == RESTART_SIGNAL:
                if self._phase == SERVING and self._device is not None:
                    self._handing_over = True
                    self._kill(RESTART_SIGNAL)
                    self._deadline_s = time.monotonic() + HAND_OVER_WITHIN_S
                elif self._phase == PAUSING:
                    self._deadline_s = time.monotonic()
            elif number in ENDING_SIGNALS:
                self._ending = True
                self._kill(signal.SIGTERM)
                self._deadline_s = time.monotonic() + END_WITHIN_S

    def _listen(self) -> None:
        """Take in what the daemon says."""
        while self._ear.fileno() >= 0:
            try:
                # socket.recv_fds of Python 3.11 passes no flags on.
                message, rights, _, _ = self._ear.recvmsg(
                    MAX_MESSAGE_BYTES,
                    socket.CMSG_SPACE(_DESCRIPTOR_BYTES),
                    socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC,
                )
            except OSError:  # nothing more, or its end is broken
                return
            if not message:
                self._ear.close()
                return
            descriptors = [
                int.from_bytes(data[:_DESCRIPTOR_BYTES], sys.byteorder)
                for level, kind, data in rights
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            ]
            self._understand(message.decode(errors="replace").splitlines(), descriptors)

    def _understand(self, lines: list[str], descriptors: list[int]) -> None:
        values = dict(line.split("=", 1) for line in lines if "=" in line)
        if values.get("FDSTORE") == "1" and descriptors and self._device is None:
            self._device = descriptors.pop()
        for descriptor in descriptors:
            os.close(descriptor)
        self._status = values.get("STATUS", self._status)[:MAX_STATUS_CHARACTERS]
        if "READY" in values and self._phase == STARTING:
            self._phase = SERVING
            self._served_since_s = time.monotonic()
            self._was_ready = True
            self._status = ""
            self._write_report()
        if not (self._ending or self._handing_over):
            self._deadline_s = time.monotonic() + WATCHDOG_S

    def _bury(self) -> int | None:
        """The daemon is gone: our exit status, or None if another one takes its place."""
        assert self._child is not None  # noqa: S101 - for the type checker
        self._listen()
        _, raw = os.waitpid(self._child, 0)
        status = os.waitstatus_to_exitcode(raw)
        os.close(self._pidfd)
        served = self._phase == SERVING
        self._child, self._deadline_s, self._phase = None, None, PAUSING
        self._last_end = _how(status)
        if status == LOCAL or (self._is_gone() and not self._ending and self._is_local()):
            return 0  # and the runtime folder stays, for who asks and unmounts
        if not self._was_ready and status != 0:
            self._remove_mount()
            return _like(status)
        if status == 0 or self._ending or self._is_gone():
            return self._finish()
        if self._device is None:
            self._say(f"the daemon {self._last_end}, and its mount with it")
            self._write_report(DIED, f"the daemon {self._last_end}; lazyfs umount tidies up")
            return 1
        if served and (self._handing_over or status == HANDED_OVER):
            self._start()
            return None
        return self._replace(status, served=served)

    def _replace(self, status: int, *, served: bool) -> int | None:
        """Another daemon after a death, unless there were too many."""
        self._deaths += 1
        if served:
            self._suspect_requests(status)
        pause_s = self._restarts.pause_s(served=served, now_s=time.monotonic())
        if pause_s is None:
            why = self._status or f"the last one {self._last_end}"
            self._say(f"giving up after {self._deaths} daemons that died: {why}")
            problem = f"gave up after {self._deaths} daemons that died: {why}"
            self._write_report(GAVE_UP, f"{problem}; lazyfs umount tidies up")
            return 1  # our copy of the descriptor goes, and the kernel fails who waits
        after = f", after {pause_s:g} s" if pause_s else ""
        self._say(f"the daemon {self._last_end}; starting another{after}")
        if pause_s:
            self._deadline_s = time.monotonic() + pause_s
            self._write_report()
        else:
            self._start()
        return None

    def _suspect_requests(self, status: int) -> None:
        """After crashes in a row, fail the requests in hand: one of them may be the cause."""
        crashed = status not in (-signal.SIGKILL, -signal.SIGTERM)  # these come from outside
        soon = time.monotonic() - self._served_since_s < CRASHES_SOON_S
        self._crashes = self._crashes + 1 if crashed and soon else 0
        if self._crashes < MAX_CRASHES or self._device is None:
            return
        from lazyfs.fuse.refusal import refuse_resent  # only now: it costs memory

        try:
            refused = refuse_resent(self._device)
        except OSError as error:
            self._say(f"cannot fail the requests in hand: {error}")
        else:
            self._say(
                f"{self._crashes} daemons crashed at once: {refused} requests were failed (EIO)"
            )

    def _is_gone(self) -> bool:
        """Whether the mount that we keep was unmounted or aborted."""
        if self._device is None:
            return False
        watch = select.poll()
        watch.register(self._device, 0)
        return bool(watch.poll(0))

    def _is_local(self) -> bool:
        """Whether the mount needs no daemon any more, however the last one ended."""
        from lazyfs.mount.loops import are_local  # only now: it costs memory

        try:
            with open(f"{self._folder}/state.json") as file:  # noqa: PTH123
                return are_local(json.load(file).get("loops"))
        except (OSError, ValueError):
            return False

    def _finish(self) -> int:
        """The mount is over: leave nothing of it."""
        if self._ending:
            self._remove_mount()
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    os.unlink(entry)  # noqa: PTH108 - pathlib costs memory
            os.rmdir(self._folder)  # noqa: PTH106
        except OSError:
            return 0  # the daemon has done it
        return 0

    def _remove_mount(self) -> None:
        """Unmount, used or not, what a daemon could not unmount any more."""
        from lazyfs.mount.unmount import remove_mount_of  # only now: it costs memory

        remove_mount_of(self._folder)

    def _say(self, text: str) -> None:
        """A line of the log, in the form of the daemon's."""
        if "--log-format=json" in self._command:
            now = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
            record = {"time": now, "level": "warning", "logger": "supervisor", "message": text}
            line = json.dumps(record | {"event": "daemon_ended", "pid": os.getpid()})
        else:
            line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} WARNING supervisor: {text}"
        print(line, file=sys.stderr, flush=True)  # noqa: T201

    def _write_report(self, phase: str | None = None, problem: str | None = None) -> None:
        """Tell ``lazyfs status`` how it goes; ``lazyfs.mount.runtime`` reads it."""
        report = {
            "phase": phase or self._phase,
            "deaths": self._deaths,
            "last_end": self._last_end,
            "problem": problem,
        }
        new = f"{self._folder}/.{REPORT_NAME}"
        try:
            with open(new, "w") as file:  # noqa: PTH123
                json.dump(report, file)
            os.replace(new, f"{self._folder}/{REPORT_NAME}")  # noqa: PTH105
        except OSError as error:
            self._say(f"cannot write {REPORT_NAME}: {error}")


def _how(status: int) -> str:
    """How a daemon ended, for a person."""
    if status >= 0:
        return f"ended with status {status}"
    return f"was killed by {signal.Signals(-status).name}"


def _like(status: int) -> int:
    """Exit status after that of a daemon; a signal that killed it kills us too."""
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


def main() -> int:
    """Supervise; arguments are those of ``Supervisor``, the daemon's command last."""
    folder, lock, report, first, *command = sys.argv[1:]
    roles.hold(f"{folder}/{roles.FILE_NAME}", roles.SUPERVISOR)
    for descriptor in (int(lock), int(report)):
        if descriptor >= 0:
            os.set_inheritable(descriptor, False)
    return Supervisor(folder, int(lock), int(report), first, command).run()


if __name__ == "__main__":
    sys.exit(main())

"""The runtime's process: signals go to it, its end is the end of ``lazyfs run``."""

import contextlib
import json
import os
import signal
import subprocess
import termios
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lazyfs.errors import RunError

EXIT_FAILED = 125
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
"""As Docker's: lazyfs or the runtime failed; the command cannot be run; there is none."""

PASSED_ON = (
    *(signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT, signal.SIGWINCH),
)
FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH, signal.SIGCONT)
"""What a terminal sends to all of its processes, the runtime among them."""

MAX_LOG_BYTES = 1 << 20

KILLED_AFTER_S = 3.0
"""How long a container may take to end that is wanted to."""


@dataclass(slots=True)
class Ending:
    """Of a container that is wanted to end, whatever it thinks of signals.

    By itself a first process with no handler of its own does not even see SIGINT.
    """

    kill: Callable[[], object]
    """Ends it for good."""
    after_s: float = 0
    """After so long it is told to; 0: only if we are."""
    begun: bool = False
    """Whether it was."""


def stop_signal(text: str) -> signal.Signals:
    """The signal that an image wants to be stopped by; SIGTERM if it says nothing.

    Raises:
        RunError: there is no such signal.
    """
    try:
        if text.isdigit():
            return signal.Signals(int(text))
        return signal.Signals[f"SIG{text.removeprefix('SIG')}"] if text else signal.SIGTERM
    except (KeyError, ValueError) as error:
        raise RunError(f"the image's stop signal {text!r} is none") from error


def run_to_end(
    command: Sequence[str],
    *,
    keep: Sequence[int],
    stdin: int | None,
    stop: signal.Signals,
    ending: Ending | None = None,
) -> int:
    """Run the runtime in the foreground until its container has ended; its exit status.

    Args:
        command: of the runtime.
        keep: descriptors that live as long as it.
        stdin: where the container reads from; None: what we read from.
        stop: what the container gets when we get SIGTERM.
        ending: what makes it end for certain; None: signals alone do.

    Raises:
        OSError: it could not be started.
        What ``ending.kill`` raises.
    """
    # With our terminal as its input it must stay with us in the terminal's foreground.
    together = stdin is None and os.isatty(0)
    modes = termios.tcgetattr(0) if together else None
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def pass_on(number: int, _: object) -> None:
        if process is None:
            early.append(number)
        elif not (together and number in FROM_TERMINAL):
            process.send_signal(stop if number == signal.SIGTERM else number)
        if ending is not None and number in (signal.SIGTERM, signal.SIGINT) and not ending.begun:
            ending.begun = True
            signal.setitimer(signal.ITIMER_REAL, KILLED_AFTER_S)

    def time_is_over(_: int, __: object) -> None:
        if ending is not None and ending.begun:
            signal.setitimer(signal.ITIMER_REAL, KILLED_AFTER_S)  # should it not be there yet
            ending.kill()
        else:
            pass_on(signal.SIGTERM, None)

    previous = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, time_is_over)
    try:
        process = subprocess.Popen(  # noqa: S603 - no shell
            command, stdin=stdin, pass_fds=keep, process_group=None if together else 0
        )
        if ending is not None and not early:
            signal.setitimer(signal.ITIMER_REAL, ending.after_s)
        for number in early:
            pass_on(number, None)
        status = process.wait()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in previous.items():
            signal.signal(number, handler)
        if modes is not None:  # the runtime may have been killed before it could do that
            with contextlib.suppress(termios.error):
                termios.tcsetattr(0, termios.TCSADRAIN, modes)
    return status if status >= 0 else 128 - status


def why_not(log: Path) -> str:
    """What the runtime says has gone wrong; empty if nothing has."""
    try:
        lines = log.read_bytes()[:MAX_LOG_BYTES].decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    said = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") in ("error", "fatal"):
            said.append(str(entry.get("msg")))
    return "; ".join(said)


def exit_status_of(problem: str) -> int:
    """The status for a container that did not come to run, by what the runtime said."""
    about_command = "exec" in problem
    if about_command and ("not found" in problem or "o such file" in problem.split("exec")[-1]):
        return EXIT_NOT_FOUND
    if about_command and ("ermission denied" in problem or "Exec format" in problem):
        return EXIT_NOT_EXECUTABLE
    return EXIT_FAILED

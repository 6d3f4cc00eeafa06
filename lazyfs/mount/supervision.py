"""What supervisor, daemon and commands agree on; free of imports that cost memory."""

import signal

OUR_SUPERVISOR = "its supervisor"
"""In ``MountState.kept_by``, where systemd does not keep the mount."""

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""End the mount, sent to either."""

RESTART_SIGNAL = signal.SIGUSR1
"""Replaces the daemon, sent to either."""

NO_CHILD = "-"
"""For the supervisor, in the place of "PROCESS:DESCRIPTOR", which is its first daemon."""

HANDED_OVER = 75
"""Exit status of a daemon that wants another one to go on (EX_TEMPFAIL in sysexits.h)."""

LOCAL = 76
"""Exit status of a daemon whose mount stays, and needs none any more."""

WATCHDOG_S = 60.0
"""A daemon that says nothing for so long, starting or serving, hangs, and is killed."""

REPORT_NAME = "supervisor.json"
"""In the runtime folder: how the supervisor's daemons do (``runtime.SupervisorReport``)."""

STARTING, SERVING, PAUSING = "starting", "serving", "pausing"
GAVE_UP, DIED = "gave up", "died"
"""Phases of a supervisor; the last two are said when it ends."""

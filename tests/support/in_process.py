"""The ``lazyfs`` command in the test's own process: quick, where no signal is sent to it."""

import contextlib
import io
import subprocess

from lazyfs.cli.main import main


def run_lazyfs(*words: object) -> "subprocess.CompletedProcess[str]":
    """Run a command; its output must have no traceback."""
    arguments = [str(word) for word in words]
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            status = main(arguments)
        except SystemExit as end:  # argparse
            status = int(end.code or 0)
    assert "Traceback" not in errors.getvalue(), errors.getvalue()
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), errors.getvalue())

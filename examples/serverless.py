"""A handler from a cold image: how long until it answers, and what was fetched for that.

    python examples/serverless.py IMAGE [COMMAND...]

IMAGE must have what COMMAND needs: by default python3, whose http.server then answers on a port of
the loopback device. Each run has an empty cache, so everything comes from the registry. With
options of "lazyfs run" in LAZYFS_RUN_OPTIONS it can be compared how much they cost.
"""

import http.client
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

PROGRAM = (sys.executable, "-m", "lazyfs")
ANSWER_WITHIN_S = 120.0
TRY_EVERY_S = 0.01


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for_answer(port: int, process: "subprocess.Popen[bytes]") -> int:
    """The status of the first answer."""
    deadline_s = time.monotonic() + ANSWER_WITHIN_S
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_WITHIN_S)
            connection.request("GET", "/")
            return connection.getresponse().status
        except ConnectionRefusedError:
            time.sleep(TRY_EVERY_S)
    raise SystemExit("the handler did not answer")


def fetched(name: str) -> tuple[int, int, int]:
    """Bytes and requests for the container's image, and the size of its layers' blobs."""
    done = subprocess.run(  # noqa: S603 - our own program
        [*PROGRAM, "status", "--json"], capture_output=True, text=True, check=True
    )
    for document in json.loads(done.stdout):
        if f"/{name}/" in document["mountpoint"]:
            totals = document["totals"]
            size = sum(layer["blob_bytes"] for layer in document["layers"])
            return totals["fetched_bytes"], totals["requests"], size
    raise SystemExit(f"lazyfs status knows nothing of {name}")


def main(words: Sequence[str]) -> int:
    """Run the handler once; print the figures."""
    if not words:
        print(__doc__)
        return 2
    image, *command = words
    port = free_port()
    command = command or ["python3", "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    name = f"handler-{os.getpid()}"
    with tempfile.TemporaryDirectory() as cache:
        options = ["--name", name, "--cache-dir", cache, "--quiet"]
        options += shlex.split(os.environ.get("LAZYFS_RUN_OPTIONS", ""))
        began_s = time.monotonic()
        with subprocess.Popen(  # noqa: S603 - as above
            [*PROGRAM, "run", *options, image, *command], stderr=subprocess.DEVNULL
        ) as process:
            status = wait_for_answer(port, process)
            took_s = time.monotonic() - began_s
            amount, requests, size = fetched(name)
            process.send_signal(signal.SIGINT)
            process.wait()
    print(f"first answer ({status}) after {took_s:.2f} s, from an empty cache")
    print(f"fetched {amount / 1e6:.1f} of {size / 1e6:.1f} MB in {requests} requests")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

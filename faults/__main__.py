"""Break everything around a mount, and look what readers get.

Needs root: it mounts. Exit status 1 if anything was not as expected.

Examples:
  python -m faults
  python -m faults --list
  python -m faults --only wrong-bytes --only 429 --json
"""

import argparse
import json
import os
import signal
import sys
import time

from rich.console import Console

from faults.report import as_document, as_markdown, as_result, show_list, show_results
from faults.run import FAULTS, JOBS, TABLES, running


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="name the faults, run none")
    parser.add_argument("--only", action="append", metavar="NAME", help="run this one; repeatable")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    parser.add_argument("--markdown", action="store_true", help="with --list: as docs/faults.md")
    parser.add_argument(
        "--jobs", type=int, default=JOBS, metavar="N", help="so many at once (default: %(default)s)"
    )
    args = parser.parse_args()
    unknown = sorted(set(args.only or ()) - {fault.name for fault in FAULTS})
    if unknown:
        parser.error(f"no such fault: {', '.join(unknown)} (--list names them)")
    return args


def main() -> int:
    """Run the suite and show what came of it."""
    args = arguments()
    chosen = [fault for fault in FAULTS if not args.only or fault.name in args.only]
    if args.list:
        if args.markdown:
            print(as_markdown(TABLES), end="")
        elif args.json:
            print(json.dumps([as_document(fault) for fault in chosen], indent=1))
        else:
            show_list(chosen)
        return 0
    if os.geteuid() != 0:
        print("python -m faults: must be run by root: it mounts", file=sys.stderr)
        return 2
    # Ended from outside it tidies up as after Ctrl-C: once the faults under way are over.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    began = time.monotonic()
    results = []
    console = Console(stderr=True)
    with running(chosen, max(1, args.jobs)) as futures, console.status("") as line:
        for number, future in enumerate(futures.values()):
            line.update(f"{number} of {len(chosen)} faults done")
            results.append(future.result())
    took_s = time.monotonic() - began
    wrong = [result for result in results if not result.agrees]
    if args.json:
        print(json.dumps([as_result(result) for result in results], indent=1))
    else:
        show_results(results, TABLES)
        print(f"{len(results)} faults in {took_s:.0f} s, {len(wrong)} not as expected")
    for result in wrong:
        print(f"\n{result.fault.name}: {result.seen}\n{result.details}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

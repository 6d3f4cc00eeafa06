"""Look for what is wrong: FUSE, the cache folder, dead mounts, registries that do not answer.

One line for each finding, with what to do about it. The exit status is 1 if there is a problem;
a warning is none.

Examples:
  lazyfs doctor
  lazyfs doctor --json | jq '.[] | select(.level != "ok")'
"""

import argparse
import dataclasses
import json

from lazyfs.cli.interrupts import run_until_interrupted
from lazyfs.mount.doctor import PROBLEM, WARNING, Finding, examine
from lazyfs.run.container import left_containers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--json", action="store_true", help="a list of JSON objects")


def run(args: argparse.Namespace) -> int:
    """Show the findings."""
    findings = run_until_interrupted(examine)
    findings += [
        Finding(
            WARNING,
            f"container {container.name}",
            f"left in {container.path} by a lazyfs run that has died; the next lazyfs run ends and "
            "removes it",
        )
        for container in left_containers()
    ]
    if args.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(f"{finding.level:8} {finding.about}: {finding.text}")
    return int(any(finding.level == PROBLEM for finding in findings))

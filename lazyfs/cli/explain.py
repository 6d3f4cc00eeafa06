"""Explain a path of a mount: whose layer it is, where its data lie, what is cached, what failed.

The mount is not asked by way of the file system, no file is read, and the answer comes soon
whatever state registry and daemon are in. Symbolic links on the way are followed as in a
container whose root is the mount; the last one is not.

Examples:
  lazyfs explain /mnt/etc/passwd
  lazyfs explain /mnt/usr/bin/python3 --json | jq '.chunks[] | select(.last_error)'
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence

from lazyfs.cli.values import format_size, printable
from lazyfs.errors import MountError
from lazyfs.mount.control import ask
from lazyfs.mount.locate import locate
from lazyfs.mount.runtime import known_mounts

ANSWER_WITHIN_S = 5.0
MAX_SHOWN = 20
"""Extents and chunks that are shown; --json has them all."""

Document = Mapping[str, object]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("path", metavar="PATH", help="of a file or directory in a lazyfs mount")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    """Explain the path."""
    mounts = {known.state.mountpoint: known for known in known_mounts() if known.alive}
    place = locate(args.path, mounts)
    control = mounts[place.mountpoint].folder.control
    answer = ask(control, ANSWER_WITHIN_S, {"explain": place.path})
    if "result" not in answer:
        raise MountError("the daemon is of a version that explains nothing; lazyfs restart helps")
    document = {"mountpoint": place.mountpoint, **answer}
    if args.json:
        print(json.dumps(document, indent=2))
        return 0
    for line in lines(document):
        print(printable(line))
    return 0


def lines(document: Document) -> list[str]:
    """The document for a person."""
    found = [
        f"path      {document['path']} in {document['mountpoint']}",
        *(f"link      {link['at']} -> {link['target']}" for link in _objects(document, "links")),
        f"is        {_what(document)}",
    ]
    if document.get("problem"):
        found.append(f"problem   {document['problem']}")
    for seen in _objects(document, "layers"):
        hidden = seen["hidden_by"]
        shown = f"hidden by {hidden}" if hidden else "shows"
        found.append(f"layer {seen['layer']:<3} {seen['what']} {seen['at']} ({shown})")
    if "verified_by" not in document:
        return found
    lazy = "lazy" if document["lazy"] else "not lazy"
    found += [f"verified  {document['verified_by']}", f"fetched   {lazy}: {document['why']}"]
    extents, chunks = _objects(document, "extents"), _objects(document, "chunks")
    found += [f"extent    {_extent(extent)}" for extent in extents[:MAX_SHOWN]]
    found += _rest(extents)
    counts = document.get("counts")
    if chunks and isinstance(counts, Mapping):
        found.append(f"chunks    {counts['cached']} of {counts['chunks']} are cached")
    found += [line for chunk in chunks[:MAX_SHOWN] for line in _chunk(chunk)]
    failed = [chunk for chunk in chunks[MAX_SHOWN:] if chunk["last_error"]]
    found += [line for chunk in failed[:MAX_SHOWN] for line in _chunk(chunk)]
    found += _rest(chunks)
    if not document.get("complete"):
        found.append("          (there is more that was not looked at)")
    return found


def _what(document: Document) -> str:
    if document["result"] != "found":
        return {
            "absent": "not there: no layer has it",
            "hidden": "not there: hidden or removed by a layer",
        }.get(str(document["result"]), "not known")
    text = f"{document['mode']} of layer {document['layer']}, nid {document['nid']}"
    text += f", node {document['node']}, {_size(document, 'size_bytes')}"
    return f"{text}, -> {document['target']}" if "target" in document else text


def _extent(extent: Document) -> str:
    text = f"{extent['offset']}+{extent['length']}: {extent['kind']}"
    if "address" in extent:
        text += f", device {extent['device']} at {extent['address']}"
    return text


def _chunk(chunk: Document) -> list[str]:
    state = "cached" if chunk["cached"] else "not cached"
    text = f"chunk     {chunk['index']}: {state}"
    if "blob_offset" in chunk:
        text += f", {_size(chunk, 'blob_bytes')} at {chunk['blob_offset']} of the blob"
    error = chunk["last_error"]
    if not isinstance(error, Mapping):
        return [text]
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(error["at_s"])))
    facts = [f"host {error['host']}", f"{error['times']} times", f"last {when}"]
    if error["status"]:
        facts.append(f"HTTP status {error['status']}")
    if error["attempts"]:
        facts.append(f"{error['attempts']} attempts")
    return [text, f"          failed ({', '.join(facts)}): {error['message']}"]


def _rest(items: Sequence[Document]) -> list[str]:
    more = len(items) - MAX_SHOWN
    return [f"          ... {more} more (--json has all)"] if more > 0 else []


def _objects(document: Document, key: str) -> list[Document]:
    items = document.get(key)
    return [item for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []


def _size(document: Document, key: str) -> str:
    value = document.get(key)
    return format_size(value) if isinstance(value, int) else "?"

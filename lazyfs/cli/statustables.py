"""The status of mounts for people."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lazyfs.cli.values import format_size
from lazyfs.mount.changes import is_temporary

PLAIN_WIDTH = 200
"""Columns where the output is not a terminal: wide enough not to break lines."""

Document = Mapping[str, object]


def show(documents: Sequence[Document]) -> None:
    """Print the documents of ``lazyfs.mount.census``."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH)
    for document in documents:
        console.print(_summary(document))
        layers = _objects(document.get("layers"))
        if layers:
            console.print(_layers(layers))
        console.print()


def _summary(document: Document) -> Table:
    """The mount itself, one fact a line."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for label, value in _facts(document):
        table.add_row(label, escape(value))
    return table


def _facts(document: Document) -> list[tuple[str, str]]:
    """What is known, in the order in which a person wants it."""
    totals = _object(document.get("totals"))
    cache = _object(document.get("cache"))
    fuse = _object(document.get("fuse"))
    facts = [
        ("mount", str(document["mountpoint"])),
        ("image", str(document["image"])),
        ("state", _state(document)),
        ("daemon", f"process {document['pid']}, up {_duration(document.get('uptime_s'))}"),
        ("driver", f"{document.get('driver') or '-'}: {document.get('driver_why') or '-'}"),
        ("survives", _survival(_object(document.get("survival")))),
    ]
    if promotion := _object(document.get("promotion")):
        text = f"{promotion.get('local')} of {promotion.get('files')} files are local"
        problem = promotion.get("problem")
        facts.append(("promotion", f"{text}; {problem}" if problem else text))
    if store := _object(document.get("store")):
        facts.append(("store", _store(store)))
    if isinstance(document.get("lazy"), bool):
        facts.append(("lazy", f"{_yes_or_no(document['lazy'])}: {document.get('why')}"))
    if metrics := _object(document.get("metrics")):
        facts.append(("metrics", str(metrics.get("problem") or metrics.get("address"))))
    if changes := document.get("changes"):
        fate = "dropped when unmounted" if is_temporary(str(changes)) else "kept"
        facts.append(("writable", f"changes in {changes}, {fate}"))
    if document.get("lowerdir"):
        facts.append(("lowerdir", str(document["lowerdir"])))
    if document.get("resolution"):
        facts.append(("note", str(document["resolution"])))
    if document.get("digest"):
        facts.append(("digest", f"{document['digest']} ({document.get('platform')})"))
    if totals:
        hits, misses = _number(totals, "cache_hits"), _number(totals, "cache_misses")
        facts += [
            ("fetched", f"{_size(totals, 'fetched_bytes')} in {totals.get('requests')} requests"),
            ("read", f"{_size(totals, 'read_bytes')} of the layers; {_read_by_users(fuse)}"),
            ("cache", f"{hits} hits, {misses} misses; {_cache(cache)}"),
            ("errors", _errors(totals, fuse)),
            *(("host", _host(host)) for host in _objects(document.get("hosts"))),
            ("verify", f"{document.get('verify')}"),
        ]
    if profile := _object(document.get("profile")):
        facts.append(("profile", _profile(profile)))
    return facts


def _profile(profile: Document) -> str:
    """What was fetched before anybody asked."""
    state = str(profile.get("state"))
    if problem := profile.get("problem"):
        return f"{state}: {problem}"
    if not _number(profile, "named_bytes"):
        return state
    text = f"{state}: {_size(profile, 'here_bytes')} of {_size(profile, 'wanted_bytes')} fetched, "
    text += f"for {_size(profile, 'named_bytes')} that {profile.get('origin')} names"
    if _number(profile, "failed_bytes"):
        text += f"; {_size(profile, 'failed_bytes')} could not be had"
    if dropped := _number(profile, "dropped_blocks"):
        text += f"; {dropped} blocks are not of this image"
    return text + ("; the rest is more than a profile may fetch" if profile.get("limited") else "")


def _state(document: Document) -> str:
    problem = document.get("problem")
    return f"{document['state']}: {problem}" if problem else str(document["state"])


def _survival(survival: Document) -> str:
    """Whether the mount survives the death of its daemon."""
    text = f"{_yes_or_no(survival.get('survives'))}: {survival.get('why')}"
    restarts = _number(survival, "restarts")
    return f"{text}; {restarts} restarts" if restarts else text


def _host(host: Document) -> str:
    """A host that the image comes from, and what is wrong with it."""
    text = f"{host.get('host')} ({host.get('role')}): {host.get('state')}"
    if host.get("state") != "ok":
        text += f", asked last for {_duration(host.get('for_s'))}"
    text += f"; {host.get('requests')} requests, {host.get('failures')} failed"
    if _number(host, "wrong_answers"):
        text += f", {host.get('wrong_answers')} answers wrong"
    problem = host.get("last_problem")
    return f"{text}; last: {problem}" if problem else text


def _store(store: Document) -> str:
    """How many images and files a store has, and which of them are sick."""
    images, files = _objects(store.get("images")), _objects(store.get("files"))
    opened = sum(bool(file.get("opened")) for file in files)
    text = f"{len(images)} images, {len(files)} layers, {opened} of them in use"
    sick = [f"{image.get('name')}: {image['problem']}" for image in images if image.get("problem")]
    sick += [f"{file.get('diff_id')}: {file['problem']}" for file in files if file.get("problem")]
    return "; ".join([text, *sick])


def _read_by_users(fuse: Document) -> str:
    operations = sum(
        count for count in _object(fuse.get("operations")).values() if isinstance(count, int)
    )
    return f"{_size(fuse, 'read_bytes')} of files, {operations} file system requests"


def _cache(cache: Document) -> str:
    if not cache.get("path"):
        return "not on disk"
    if cache.get("problem"):
        return f"in memory, for {cache.get('path')} is of no use now: {cache.get('problem')}"
    limit = _size(cache, "limit_bytes") if cache.get("limit_bytes") else "no limit"
    return f"{_size(cache, 'usage_bytes')} of {limit} in {cache.get('path')}"


def _errors(totals: Document, fuse: Document) -> str:
    failures = ", ".join(f"{count} {name}" for name, count in _object(fuse.get("failures")).items())
    return (
        f"{totals.get('errors')}, of them {totals.get('verification_failures')} failed "
        f"verifications; readers got {failures or 'none'}"
    )


def _layers(layers: Sequence[Document]) -> Table:
    """One row for each layer."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("layer", "lazy", "verified by", "size", "blob", "fetched", "requests", "chunks"):
        table.add_column(title, overflow="fold")
    table.add_column("why, notes, errors", overflow="fold")
    for number, layer in enumerate(layers, 1):
        notes = layer.get("notes")
        remarks = [layer.get("why"), *(notes if isinstance(notes, list) else [])]
        if _number(layer, "errors"):
            remarks.append(f"{layer.get('errors')} errors, the last: {layer.get('last_error')}")
        cells = (
            f"{number} {_short(layer.get('digest'))}",
            _yes_or_no(layer.get("lazy")),
            layer.get("verity"),
            _size(layer, "size_bytes"),
            _size(layer, "blob_bytes"),
            _size(layer, "fetched_bytes"),
            layer.get("requests"),
            _chunks(layer),
            "; ".join(str(remark) for remark in remarks if remark),
        )
        table.add_row(*(escape(str(cell)) for cell in cells))
    return table


def _chunks(layer: Document) -> str:
    """Chunks in the cache of all chunks; the former may be too dear to count."""
    cached = layer.get("chunks_cached")
    return f"{'?' if cached is None else cached}/{layer.get('chunks')}"


def _yes_or_no(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else "-"


def _short(digest: object) -> str:
    """Enough of a digest to tell layers apart; a local file has none."""
    if digest is None:
        return ""
    algorithm, colon, encoded = str(digest).partition(":")
    return f"{algorithm}{colon}{encoded[:12]}"


def _duration(seconds: object) -> str:
    """Seconds for a person, such as ``2 h 5 min``."""
    if not isinstance(seconds, int | float):
        return "?"
    minutes = int(seconds) // 60
    if minutes == 0:
        return f"{int(seconds)} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 60 * 24:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // (60 * 24)} d {minutes // 60 % 24} h"


def _number(document: Document, key: str) -> int | float:
    value = document.get(key)
    return value if isinstance(value, int | float) else 0


def _size(document: Document, key: str) -> str:
    return format_size(_number(document, key))


def _object(value: object) -> Document:
    """The value if it is a JSON object, else an empty one: a daemon of another version answers."""
    return value if isinstance(value, dict) else {}


def _objects(value: object) -> list[Document]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []

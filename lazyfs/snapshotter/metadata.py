"""What is known of snapshots, in an SQLite file that survives a crash at any moment; blocking."""

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lazyfs.snapshotter.errors import (
    InvalidRequestError,
    MissingSnapshotError,
    SnapshotError,
    SnapshotExistsError,
    SnapshotInUseError,
)
from lazyfs.snapshotter.model import Kind, Snapshot

MAX_DEPTH = 500
"""Snapshots above each other; overlayfs has no more lower directories."""

VERSION = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS snapshots (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  name TEXT NOT NULL UNIQUE,
  parent TEXT NOT NULL,
  kind TEXT NOT NULL,
  created_s REAL NOT NULL,
  updated_s REAL NOT NULL,
  labels TEXT NOT NULL,
  layer TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS parents ON snapshots (parent);
"""


class Metadata:
    """The snapshots; every method is one transaction, whichever thread calls it."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            SnapshotError: it cannot be used.
        """
        self._lock = threading.Lock()
        try:
            self._base = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._base.execute("PRAGMA journal_mode = WAL")
            self._base.execute("PRAGMA synchronous = FULL")
            (version,) = self._base.execute("PRAGMA user_version").fetchone()
            if version not in (0, VERSION):
                raise SnapshotError(f"{path} is of version {version}, not {VERSION}")
            self._base.executescript(_SCHEMA + f"PRAGMA user_version = {VERSION};")
        except sqlite3.Error as error:
            raise SnapshotError(f"{path}: {error}") from error

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._base.close()

    def get(self, name: str) -> Snapshot:
        """The snapshot of a name.

        Raises:
            MissingSnapshotError.
        """
        with self._transaction():
            return self._get(name)

    def all(self) -> list[Snapshot]:
        """All snapshots, the oldest first."""
        with self._transaction():
            return [
                _decode(row)
                for row in self._base.execute("SELECT * FROM snapshots ORDER BY number")
            ]

    def chain(self, name: str) -> list[Snapshot]:
        """A snapshot, its parent, and so on.

        Raises:
            MissingSnapshotError.
            SnapshotError: it goes on for too long.
        """
        with self._transaction():
            found: list[Snapshot] = []
            while name:
                if len(found) > MAX_DEPTH:
                    raise SnapshotError(f"more than {MAX_DEPTH} snapshots above each other")
                found.append(self._get(name))
                name = found[-1].parent
            return found

    def create(
        self,
        name: str,
        parent: str,
        kind: Kind,
        labels: Mapping[str, str],
        layer: str | None = None,
    ) -> Snapshot:
        """Add a snapshot.

        Raises:
            SnapshotExistsError, MissingSnapshotError: the name is taken, the parent is not there.
            InvalidRequestError: the parent is not committed.
        """
        if not name:
            raise InvalidRequestError("a snapshot needs a name")
        with self._transaction():
            self._check_free(name)
            if parent and self._get(parent).kind is not Kind.COMMITTED:
                raise InvalidRequestError(f"parent {parent} is not committed")
            now = time.time()
            inserted = self._base.execute(
                "INSERT INTO snapshots (name, parent, kind, created_s, updated_s, labels, layer)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (name, parent, kind.value, now, now, json.dumps(dict(labels)), layer),
            )
            number = inserted.lastrowid
            assert number is not None  # noqa: S101 - an INSERT has made a row
            return Snapshot(number, name, parent, kind, now, now, dict(labels), layer)

    def commit(self, name: str, key: str, labels: Mapping[str, str]) -> Snapshot:
        """Make the active snapshot ``key`` the committed one ``name``; its folder stays.

        Raises:
            SnapshotExistsError, MissingSnapshotError: ``name`` is taken, ``key`` is not there.
            SnapshotInUseError: ``key`` is not active.
        """
        with self._transaction():
            active = self._get(key)
            self._check_free(name)
            if active.kind is not Kind.ACTIVE:
                raise SnapshotInUseError(f"{key} is {active.kind.value}, not active")
            return self._replace(
                replace(active, name=name, kind=Kind.COMMITTED, labels=dict(labels))
            )

    def set_labels(self, name: str, change: Mapping[str, str | None], *, clear: bool) -> Snapshot:
        """Change labels: to None removes one, ``clear`` all that are not mentioned.

        Raises:
            MissingSnapshotError.
        """
        with self._transaction():
            found = self._get(name)
            labels = {} if clear else dict(found.labels)
            for label, value in change.items():
                labels.pop(label, None)
                if value is not None:
                    labels[label] = value
            return self._replace(replace(found, labels=labels))

    def remove(self, name: str) -> Snapshot:
        """Forget a snapshot; what it was.

        Raises:
            MissingSnapshotError.
            SnapshotInUseError: it has children.
        """
        with self._transaction():
            found = self._get(name)
            child = self._base.execute(
                "SELECT name FROM snapshots WHERE parent = ? LIMIT 1", (name,)
            ).fetchone()
            if child is not None:
                raise SnapshotInUseError(f"{name} is the parent of {child[0]}")
            self._base.execute("DELETE FROM snapshots WHERE number = ?", (found.number,))
            return found

    def _get(self, name: str) -> Snapshot:
        row = self._base.execute("SELECT * FROM snapshots WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise MissingSnapshotError(f"there is no snapshot {name}")
        return _decode(row)

    def _check_free(self, name: str) -> None:
        if self._base.execute("SELECT 1 FROM snapshots WHERE name = ?", (name,)).fetchone():
            raise SnapshotExistsError(f"there is a snapshot {name} already")

    def _replace(self, snapshot: Snapshot) -> Snapshot:
        snapshot = replace(snapshot, updated_s=time.time())
        self._base.execute(
            "UPDATE snapshots SET name = ?, kind = ?, updated_s = ?, labels = ? WHERE number = ?",
            (
                *(snapshot.name, snapshot.kind.value, snapshot.updated_s),
                *(json.dumps(dict(snapshot.labels)), snapshot.number),
            ),
        )
        return snapshot

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            try:
                self._base.execute("BEGIN IMMEDIATE")
                try:
                    yield
                except BaseException:
                    self._base.execute("ROLLBACK")
                    raise
                self._base.execute("COMMIT")
            except sqlite3.Error as error:
                raise SnapshotError(f"the list of snapshots: {error}") from error


def _decode(row: tuple[object, ...]) -> Snapshot:
    number, name, parent, kind, created, updated, labels, layer = row
    return Snapshot(
        int(str(number)),
        str(name),
        str(parent),
        Kind(kind),
        float(str(created)),
        float(str(updated)),
        json.loads(str(labels)),
        None if layer is None else str(layer),
    )

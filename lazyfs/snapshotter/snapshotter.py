"""What containerd's requests do, apart from how they come; blocking, from any thread.

ROOT/metadata.db            the snapshots
ROOT/snapshots/NUMBER/fs    their files; of a lazy one a symbolic link to its layer
ROOT/snapshots/NUMBER/work  overlayfs's
ROOT/layers/IDENTITY        lazy layers, mounted
ROOT/store                  their files (``lazyfs store``)
"""

import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from lazyfs.errors import LazyfsError, SourceUnavailableError
from lazyfs.snapshotter.counters import Counters
from lazyfs.snapshotter.errors import MissingSnapshotError, SnapshotExistsError
from lazyfs.snapshotter.filters import Filter
from lazyfs.snapshotter.layers import Found
from lazyfs.snapshotter.metadata import Metadata
from lazyfs.snapshotter.model import (
    LAZY,
    MAX_LABEL_CHARACTERS,
    TARGET,
    WHY,
    Kind,
    LayerRequest,
    Mount,
    Snapshot,
    Usage,
    layer_request,
)
from lazyfs.snapshotter.usage import tree_usage

SNAPSHOTS = "snapshots"

INDEX_SWITCH = Path("/sys/module/overlay/parameters/index")

log = logging.getLogger(__name__)


class Layers(Protocol):
    """Lazy layers, as a snapshotter needs them: ``lazyfs.snapshotter.layers``."""

    def find(self, request: LayerRequest) -> Found:
        """Whether a layer can be lazy."""
        ...

    def prepare(self, request: LayerRequest) -> None:
        """Begin to mount the other layers of its image."""
        ...

    def path(self, layer: str) -> Path:
        """Where it is, or would be, mounted."""
        ...

    def mount(self, layer: str) -> Path:
        """Have it mounted.

        Raises:
            LazyfsError.
        """
        ...

    def usage(self, layer: str) -> Usage:
        """What is kept of it on this machine.

        Raises:
            LazyfsError.
        """
        ...

    def keep_only(self, layers: set[str]) -> None:
        """Let go of the others.

        Raises:
            LazyfsError, OSError, CacheError.
        """
        ...


class Snapshotter:
    """The snapshots below one folder."""

    def __init__(self, root: Path, layers: Layers) -> None:
        """Open what is there, or begin.

        Raises:
            SnapshotError: the list of snapshots cannot be used.
        """
        (root / SNAPSHOTS).mkdir(mode=0o711, parents=True, exist_ok=True)
        self.counters = Counters()
        self._root = root
        self._layers = layers
        self._metadata = Metadata(root / "metadata.db")
        self._making = threading.Lock()
        """Held while a snapshot has an entry and no folder, and while leftovers are sought."""
        self._preparing = 0
        """Requests that may have a layer without a snapshot yet."""
        self.postponed = False
        """Whether a cleanup has left layers alone for their sake."""
        self._options = ("index=off",) if INDEX_SWITCH.exists() else ()

    def close(self) -> None:
        """Let go of the list; nothing is unmounted."""
        self._metadata.close()

    def restore(self) -> int:
        """Mount all lazy layers anew that a restart has taken; how many could not be.

        One that cannot be is tried again when it is wanted.
        """
        failed = 0
        for layer in sorted({found.layer for found in self._metadata.all() if found.layer}):
            try:
                self._layers.mount(layer)
            except LazyfsError as error:
                failed += 1
                log.error("layer %s is not mounted for now: %s", layer[:12], error)
        self.counters.not_restored = failed
        return failed

    def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        """Make an active snapshot, or, where ``labels`` ask for a lazy layer, a committed one.

        Raises:
            SnapshotExistsError: also if it was made at once, of a lazy layer.
            LazyfsError.
        """
        request = layer_request(labels)
        target = labels.get(TARGET)
        if target is None or request is None:
            return self._create(key, parent, Kind.ACTIVE, labels)
        with self._making:
            self._preparing += 1
        try:
            return self._prepare_layer(key, parent, labels, request, target)
        finally:
            with self._making:
                self._preparing -= 1

    def _prepare_layer(
        self, key: str, parent: str, labels: Mapping[str, str], request: LayerRequest, target: str
    ) -> list[Mount]:
        """As ``prepare``, for a layer of an image."""
        found = self._layers.find(request)
        told = {**labels, LAZY: "false", WHY: _fitting(WHY, found.why)}
        if found.layer is None:
            self.counters.fallbacks += 1
            log.warning("%s of %s is unpacked: %s", request.digest, request.image, found.why)
            return self._create(key, parent, Kind.ACTIVE, told)
        try:
            self._add_lazy(target, parent, {**told, LAZY: "true"}, found.layer)
        except LazyfsError as error:
            if not isinstance(error, SnapshotExistsError):
                self.counters.failures += 1
                log.error("%s of %s: %s", request.digest, request.image, error)
            raise
        self.counters.lazy += 1
        log.info("%s of %s is mounted lazily", request.digest, request.image)
        self._layers.prepare(request)
        raise SnapshotExistsError(f"{target} is there: its layer is mounted lazily")

    def _add_lazy(self, target: str, parent: str, labels: Mapping[str, str], layer: str) -> None:
        name = _name_on(target, parent)
        self._layers.mount(layer)
        with self._making:
            snapshot = self._metadata.create(name, parent, Kind.COMMITTED, labels, layer)
            try:
                self._link(snapshot)
            except OSError as error:
                self._metadata.remove(name)
                raise SourceUnavailableError(f"{error.filename}: {error.strerror}") from error

    def _link(self, snapshot: Snapshot) -> None:
        """Make the folder of a lazy snapshot."""
        assert snapshot.layer is not None  # noqa: S101 - the caller's word
        files = self._files(snapshot)
        files.parent.mkdir(mode=0o700, exist_ok=True)
        files.unlink(missing_ok=True)
        files.symlink_to(self._layers.path(snapshot.layer))

    def view(self, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        """Make a read-only snapshot.

        Raises:
            LazyfsError.
        """
        return self._create(key, parent, Kind.VIEW, labels)

    def _create(self, key: str, parent: str, kind: Kind, labels: Mapping[str, str]) -> list[Mount]:
        parents = self._metadata.chain(parent)
        self._ready(parents)
        with self._making:
            snapshot = self._metadata.create(key, parent, kind, labels)
            try:
                self._make_folder(snapshot, parents[0] if parents else None)
            except OSError as error:
                self._metadata.remove(key)
                raise SourceUnavailableError(f"{error.filename}: {error.strerror}") from error
        return self._mounts(snapshot, parents)

    def _make_folder(self, snapshot: Snapshot, parent: Snapshot | None) -> None:
        files = self._files(snapshot)
        shutil.rmtree(files.parent, ignore_errors=True)  # of one that was never entered
        files.parent.mkdir(mode=0o700)
        files.mkdir(mode=0o755)
        files.chmod(0o755)
        if snapshot.kind is Kind.ACTIVE:
            (files.parent / "work").mkdir(mode=0o711)
        if parent is not None:  # the root directory of a container is that of its upper directory
            status = self._files(parent).stat()
            os.chown(files, status.st_uid, status.st_gid)
            files.chmod(status.st_mode & 0o7777)

    def mounts(self, key: str) -> list[Mount]:
        """How to mount an active snapshot or a view.

        Raises:
            LazyfsError.
        """
        snapshot, *parents = self._metadata.chain(key)
        self._ready(parents)
        return self._mounts(snapshot, parents)

    def _ready(self, snapshots: list[Snapshot]) -> None:
        """Have all lazy layers in their places, also after a crash or a restart.

        Raises:
            LazyfsError.
        """
        for snapshot in snapshots:
            if snapshot.layer is not None:
                self._layers.mount(snapshot.layer)
                if not self._files(snapshot).is_symlink():
                    with self._making:
                        self._link(snapshot)

    def _mounts(self, snapshot: Snapshot, parents: list[Snapshot]) -> list[Mount]:
        files = os.fspath(self._files(snapshot))
        lower = [os.fspath(self._files(parent)) for parent in parents]
        active = snapshot.kind is Kind.ACTIVE
        if active and not lower:
            return [Mount("bind", files, ("rw", "rbind"))]
        if not active and len(lower) <= 1:
            return [Mount("bind", os.path.realpath((lower or [files])[0]), ("ro", "rbind"))]
        options = [*self._options]
        if active:
            work = os.fspath(self._files(snapshot).parent / "work")
            options += [f"workdir={work}", f"upperdir={files}"]
        return [Mount("overlay", "overlay", (*options, f"lowerdir={':'.join(lower)}"))]

    def commit(self, name: str, key: str, labels: Mapping[str, str]) -> None:
        """Make an active snapshot a committed one.

        Raises:
            LazyfsError.
        """
        kept = {
            label: value
            for label, value in self._metadata.get(key).labels.items()
            if label in (LAZY, WHY)
        }
        self._metadata.commit(name, key, {**kept, **labels})

    def remove(self, key: str) -> None:
        """Forget a snapshot; what it takes of the disk goes with ``cleanup``, or now.

        Raises:
            LazyfsError.
        """
        snapshot = self._metadata.remove(key)
        self._discard(self._root / SNAPSHOTS / str(snapshot.number))

    def _discard(self, folder: Path) -> None:
        """Remove a folder; what cannot be removed now ``cleanup`` finds again."""
        if (folder / "fs").is_symlink():
            (folder / "fs").unlink()
        shutil.rmtree(folder, onerror=_note_leftover)

    def get(self, key: str) -> Snapshot:
        """A snapshot.

        Raises:
            MissingSnapshotError.
        """
        return self._metadata.get(key)

    def set_labels(self, key: str, change: Mapping[str, str | None], *, clear: bool) -> Snapshot:
        """Change the labels of a snapshot: to None removes one, ``clear`` all others.

        Raises:
            MissingSnapshotError.
        """
        return self._metadata.set_labels(key, change, clear=clear)

    def matching(self, wanted: Filter) -> list[Snapshot]:
        """The snapshots that pass a filter."""
        return [snapshot for snapshot in self._metadata.all() if wanted(snapshot)]

    def usage(self, key: str) -> Usage:
        """What a snapshot itself takes of the disk: of a lazy one, what was fetched and is kept.

        Raises:
            LazyfsError.
        """
        snapshot = self._metadata.get(key)
        if snapshot.layer is not None:
            return self._layers.usage(snapshot.layer)
        try:
            return tree_usage(self._files(snapshot))
        except FileNotFoundError as error:
            raise MissingSnapshotError(f"{key} has been removed") from error

    def cleanup(self) -> None:
        """Remove what no snapshot needs any more: folders, mounts of layers, images of the store.

        Raises:
            LazyfsError, OSError, CacheError.
        """
        with self._making:
            snapshots = self._metadata.all()
            numbers = {str(snapshot.number) for snapshot in snapshots}
            leftovers = [
                folder
                for folder in (self._root / SNAPSHOTS).iterdir()
                if folder.name not in numbers
            ]
            self.postponed = self._preparing > 0
            if not self.postponed:
                used = {snapshot.layer for snapshot in snapshots if snapshot.layer}
                self._layers.keep_only(used)
        for folder in leftovers:
            self._discard(folder)

    def _files(self, snapshot: Snapshot) -> Path:
        return self._root / SNAPSHOTS / str(snapshot.number) / "fs"


def _name_on(target: str, parent: str) -> str:
    """Names a lazy snapshot; containerd finds it by its label and its parent.

    The parents of one target differ where one is a snapshot that a namespace of containerd has
    unpacked for itself.
    """
    if not parent:
        return target
    return f"{target} on {hashlib.sha256(parent.encode()).hexdigest()[:16]}"


def _note_leftover(_: object, path: str, error: object) -> None:
    log.warning("%s is left for now: %s", path, error)


def _fitting(label: str, value: str) -> str:
    """A value cut to what containerd allows."""
    return value.replace("\n", " ")[: MAX_LABEL_CHARACTERS - len(label) - 100]

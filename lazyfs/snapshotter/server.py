"""containerd's snapshots service over gRPC, on a Unix socket."""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from cache.errors import CacheError
from lazyfs.errors import LazyfsError
from lazyfs.snapshotter.api import snapshots_pb2 as api
from lazyfs.snapshotter.errors import (
    InvalidRequestError,
    MissingSnapshotError,
    SnapshotExistsError,
    SnapshotInUseError,
)
from lazyfs.snapshotter.filters import matcher
from lazyfs.snapshotter.model import Kind, Mount, Snapshot
from lazyfs.snapshotter.snapshotter import Snapshotter

SERVICE = "containerd.services.snapshots.v1.Snapshots"

REQUESTS_AT_ONCE = 32
INFOS_PER_MESSAGE = 100
END_WITHIN_S = 10.0

STATUS = (
    (SnapshotExistsError, grpc.StatusCode.ALREADY_EXISTS),
    (MissingSnapshotError, grpc.StatusCode.NOT_FOUND),
    (SnapshotInUseError, grpc.StatusCode.FAILED_PRECONDITION),
    (InvalidRequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (LazyfsError, grpc.StatusCode.UNAVAILABLE),
    (CacheError, grpc.StatusCode.UNAVAILABLE),
    (OSError, grpc.StatusCode.UNAVAILABLE),
)

KINDS = {Kind.VIEW: api.VIEW, Kind.ACTIVE: api.ACTIVE, Kind.COMMITTED: api.COMMITTED}

LABEL_MASK = "labels."

Request = TypeVar("Request", bound=Message)
Answer = TypeVar("Answer")

log = logging.getLogger(__name__)


class SnapshotsService:
    """Translates requests for a snapshotter."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        self._snapshotter = snapshotter

    def prepare(self, request: api.PrepareRequest) -> api.MountsResponse:
        """Prepare."""
        return _mounts(self._snapshotter.prepare(request.key, request.parent, dict(request.labels)))

    def view(self, request: api.PrepareRequest) -> api.MountsResponse:
        """View."""
        return _mounts(self._snapshotter.view(request.key, request.parent, dict(request.labels)))

    def mounts(self, request: api.KeyRequest) -> api.MountsResponse:
        """Mounts."""
        return _mounts(self._snapshotter.mounts(request.key))

    def commit(self, request: api.CommitRequest) -> Empty:
        """Commit."""
        self._snapshotter.commit(request.name, request.key, dict(request.labels))
        return Empty()

    def remove(self, request: api.KeyRequest) -> Empty:
        """Remove."""
        self._snapshotter.remove(request.key)
        return Empty()

    def stat(self, request: api.KeyRequest) -> api.InfoResponse:
        """Stat."""
        return api.InfoResponse(info=_info(self._snapshotter.get(request.key)))

    def update(self, request: api.UpdateRequest) -> api.InfoResponse:
        """Update: labels are all that can be changed."""
        labels = dict(request.info.labels)
        paths = list(request.update_mask.paths)
        clear = not paths or "labels" in paths
        change: dict[str, str | None] = {**labels} if clear else {}
        for path in paths:
            if path.startswith(LABEL_MASK):
                name = path.removeprefix(LABEL_MASK)
                change[name] = labels.get(name)
            elif path != "labels":
                raise InvalidRequestError(f"{path} cannot be changed")
        changed = self._snapshotter.set_labels(request.info.name, change, clear=clear)
        return api.InfoResponse(info=_info(changed))

    def list(self, request: api.ListRequest) -> Iterator[api.ListResponse]:
        """List."""
        found = self._snapshotter.matching(matcher(request.filters))
        return (
            api.ListResponse(info=map(_info, found[start : start + INFOS_PER_MESSAGE]))
            for start in range(0, len(found), INFOS_PER_MESSAGE)
        )

    def usage(self, request: api.KeyRequest) -> api.UsageResponse:
        """Usage."""
        usage = self._snapshotter.usage(request.key)
        return api.UsageResponse(size=usage.size_bytes, inodes=usage.inodes)

    def cleanup(self, _: api.CleanupRequest) -> Empty:
        """Cleanup."""
        self._snapshotter.cleanup()
        return Empty()

    def handler(self) -> grpc.GenericRpcHandler:
        """All of them, for a server."""
        one = self._answering
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Prepare": one(self.prepare, api.PrepareRequest),
            "View": one(self.view, api.PrepareRequest),
            "Mounts": one(self.mounts, api.KeyRequest),
            "Commit": one(self.commit, api.CommitRequest),
            "Remove": one(self.remove, api.KeyRequest),
            "Stat": one(self.stat, api.KeyRequest),
            "Update": one(self.update, api.UpdateRequest),
            "Usage": one(self.usage, api.KeyRequest),
            "Cleanup": one(self.cleanup, api.CleanupRequest),
            "List": grpc.unary_stream_rpc_method_handler(
                self._guarded(self.list),
                api.ListRequest.FromString,
                api.ListResponse.SerializeToString,
            ),
        }
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _answering(
        self, method: Callable[[Request], Message], kind: type[Request]
    ) -> "grpc.RpcMethodHandler[Request, Message]":
        return grpc.unary_unary_rpc_method_handler(
            self._guarded(method), kind.FromString, lambda answer: answer.SerializeToString()
        )

    def _guarded(
        self, method: Callable[[Request], Answer]
    ) -> "Callable[[Request, grpc.ServicerContext], Answer]":
        """Errors become what containerd tells apart; a bug ends one request."""

        def answer(request: Request, context: grpc.ServicerContext) -> Answer:
            began_s = time.monotonic()
            try:
                return method(request)
            except Exception as error:
                for kind, status in STATUS:
                    if isinstance(error, kind):
                        context.abort(status, str(error))
                self._snapshotter.counters.errors += 1
                log.exception("internal error")
                context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")
            finally:
                log.debug("%s took %.3f s", method.__name__, time.monotonic() - began_s)

        return answer


def start_server(address: Path, handlers: "list[grpc.GenericRpcHandler]") -> grpc.Server:
    """Answer at a Unix socket, for root only; a socket of a process before us goes."""
    address.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    address.unlink(missing_ok=True)
    server = grpc.server(
        futures.ThreadPoolExecutor(REQUESTS_AT_ONCE, "snapshots"),
        options=[("grpc.so_reuseport", 0)],
    )
    server.add_generic_rpc_handlers(tuple(handlers))
    server.add_insecure_port(f"unix:{address}")
    server.start()
    address.chmod(0o600)
    return server


def _mounts(mounts: list[Mount]) -> api.MountsResponse:
    return api.MountsResponse(
        mounts=[
            api.Mount(type=mount.kind, source=mount.source, options=mount.options)
            for mount in mounts
        ]
    )


def _info(snapshot: Snapshot) -> api.Info:
    return api.Info(
        name=snapshot.name,
        parent=snapshot.parent,
        kind=KINDS[snapshot.kind],
        created_at=_timestamp(snapshot.created_s),
        updated_at=_timestamp(snapshot.updated_s),
        labels=dict(snapshot.labels),
    )


def _timestamp(seconds: float) -> Timestamp:
    return Timestamp(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))

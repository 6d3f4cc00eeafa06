"""containerd's API, as far as pulling an image needs it; blocking."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from lazyfs.errors import SourceUnavailableError
from lazyfs.snapshotter.api import containerd_pb2 as api
from lazyfs.snapshotter.api import snapshots_pb2
from registry.manifest import Descriptor

CALL_WITHIN_S = 300.0
PIECE_BYTES = 1 << 20

LEASE_EXPIRES = "containerd.io/gc.expire"

SNAPSHOTS = "containerd.services.snapshots.v1.Snapshots"
CONTENT = "containerd.services.content.v1.Content"
IMAGES = "containerd.services.images.v1.Images"
LEASES = "containerd.services.leases.v1.Leases"
DIFF = "containerd.services.diff.v1.Diff"

Answer = TypeVar("Answer", bound=Message)


class Containerd:
    """One namespace of a containerd."""

    def __init__(self, address: Path, namespace: str) -> None:
        """Speak with the one that listens at a Unix socket."""
        self._address = address
        self._channel = grpc.insecure_channel(f"unix:{address}")
        self._metadata: tuple[tuple[str, str | bytes], ...] = (("containerd-namespace", namespace),)

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    @contextlib.contextmanager
    def lease(self, name: str, expires: str) -> Iterator[None]:
        """Keep what is made meanwhile from containerd's garbage collector.

        Raises:
            SourceUnavailableError: containerd does not do it.
        """
        request = api.LeaseCreateRequest(id=name, labels={LEASE_EXPIRES: expires})
        self._call(LEASES, "Create", request, Empty)
        alone = self._metadata
        self._metadata = (*alone, ("containerd-lease", name))
        try:
            yield
        finally:
            self._metadata = alone
            self._call(LEASES, "Delete", api.LeaseDeleteRequest(id=name), Empty)

    def write(self, content: Descriptor, data: BinaryIO, labels: Mapping[str, str]) -> None:
        """Put content there, with labels; containerd checks its digest.

        Raises:
            SourceUnavailableError: it is not what the descriptor says, or containerd is not well.
        """
        digest = str(content.digest)

        def requests() -> Iterator[api.WriteRequest]:
            offset = 0
            reference = f"lazyfs-{digest}"
            total = content.size_bytes
            while piece := data.read(PIECE_BYTES):
                yield api.WriteRequest(
                    action=api.WRITE, ref=reference, total=total, offset=offset, data=piece
                )
                offset += len(piece)
            yield api.WriteRequest(
                action=api.COMMIT,
                ref=reference,
                total=total,
                expected=digest,
                offset=offset,
                labels=dict(labels),
            )

        call: grpc.StreamStreamMultiCallable[api.WriteRequest, api.WriteResponse]
        call = self._channel.stream_stream(
            f"/{CONTENT}/Write",
            api.WriteRequest.SerializeToString,
            api.WriteResponse.FromString,
        )
        try:
            for _ in call(requests(), metadata=self._metadata, timeout=CALL_WITHIN_S):
                pass
        except grpc.RpcError as error:
            if _status(error) is not grpc.StatusCode.ALREADY_EXISTS:
                raise self._failure("Write", error) from error
            if labels:
                self.label_content(digest, labels)

    def label_content(self, digest: str, labels: Mapping[str, str]) -> None:
        """Add labels to content that is there.

        Raises:
            SourceUnavailableError.
        """
        mask = FieldMask(paths=[f"labels.{label}" for label in labels])
        info = api.ContentInfo(digest=digest, labels=dict(labels))
        request = api.ContentUpdateRequest(info=info, update_mask=mask)
        self._call(CONTENT, "Update", request, Empty)

    def has_snapshot(self, snapshotter: str, name: str) -> bool:
        """Whether there is a snapshot.

        Raises:
            SourceUnavailableError.
        """
        request = snapshots_pb2.KeyRequest(snapshotter=snapshotter, key=name)
        try:
            self._ask(SNAPSHOTS, "Stat", request, snapshots_pb2.InfoResponse)
        except grpc.RpcError as error:
            if _status(error) is grpc.StatusCode.NOT_FOUND:
                return False
            raise self._failure("Stat", error) from error
        return True

    def prepare(
        self, snapshotter: str, key: str, parent: str, labels: Mapping[str, str]
    ) -> Sequence[snapshots_pb2.Mount] | None:
        """Prepare a snapshot for a layer; None if the snapshotter has the layer already.

        Raises:
            SourceUnavailableError.
        """
        request = snapshots_pb2.PrepareRequest(
            snapshotter=snapshotter, key=key, parent=parent, labels=dict(labels)
        )
        try:
            answer = self._ask(SNAPSHOTS, "Prepare", request, snapshots_pb2.MountsResponse)
        except grpc.RpcError as error:
            if _status(error) is grpc.StatusCode.ALREADY_EXISTS:
                return None
            raise self._failure("Prepare", error) from error
        return answer.mounts

    def commit(self, snapshotter: str, name: str, key: str, labels: Mapping[str, str]) -> None:
        """Commit it.

        Raises:
            SourceUnavailableError.
        """
        request = snapshots_pb2.CommitRequest(
            snapshotter=snapshotter, name=name, key=key, labels=dict(labels)
        )
        self._call(SNAPSHOTS, "Commit", request, Empty)

    def remove_snapshot(self, snapshotter: str, key: str) -> None:
        """Remove it.

        Raises:
            SourceUnavailableError.
        """
        request = snapshots_pb2.KeyRequest(snapshotter=snapshotter, key=key)
        self._call(SNAPSHOTS, "Remove", request, Empty)

    def apply(self, layer: Descriptor, mounts: Sequence[snapshots_pb2.Mount]) -> str:
        """Unpack a layer whose content is there; its diff ID.

        Raises:
            SourceUnavailableError: also if containerd cannot unpack such layers.
        """
        request = api.ApplyRequest(diff=_message(layer), mounts=mounts)
        return self._call(DIFF, "Apply", request, api.ApplyResponse).applied.digest

    def set_image(self, name: str, target: Descriptor) -> None:
        """Let a name mean a manifest.

        Raises:
            SourceUnavailableError.
        """
        request = api.ImageRequest(image=api.Image(name=name, target=_message(target)))
        try:
            self._ask(IMAGES, "Create", request, Empty)
        except grpc.RpcError as error:
            if _status(error) is not grpc.StatusCode.ALREADY_EXISTS:
                raise self._failure("Create", error) from error
            self._call(IMAGES, "Update", request, Empty)

    def _call(self, service: str, method: str, request: Message, kind: type[Answer]) -> Answer:
        try:
            return self._ask(service, method, request, kind)
        except grpc.RpcError as error:
            raise self._failure(method, error) from error

    def _ask(self, service: str, method: str, request: Message, kind: type[Answer]) -> Answer:
        call: grpc.UnaryUnaryMultiCallable[Message, Answer] = self._channel.unary_unary(
            f"/{service}/{method}",
            lambda message: message.SerializeToString(),
            kind.FromString,
        )
        return call(request, metadata=self._metadata, timeout=CALL_WITHIN_S)

    def _failure(self, method: str, error: grpc.RpcError) -> SourceUnavailableError:
        return SourceUnavailableError(f"containerd at {self._address}: {method}: {error.details()}")


def _status(error: grpc.RpcError) -> grpc.StatusCode:
    return error.code()


def _message(descriptor: Descriptor) -> api.Descriptor:
    return api.Descriptor(
        media_type=descriptor.media_type,
        digest=str(descriptor.digest),
        size=descriptor.size_bytes,
        annotations=dict(descriptor.annotations),
    )

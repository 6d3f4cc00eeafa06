"""CRI's image service, passed on to containerd; credentials of pulls are remembered on the way.

Kubelet hands image pull secrets to the image service and to nobody else. So it is given our socket
as its image service; requests are passed on byte for byte.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import grpc

from lazyfs.snapshotter.api import cri_pb2 as api
from lazyfs.snapshotter.credentials import CredentialBook
from registry.credentials import Credentials
from registry.errors import RegistryError

PREFIXES = ("/runtime.v1.ImageService/", "/runtime.v1alpha2.ImageService/")
PULL = "PullImage"

PULL_WITHIN_S = 3600.0
"""How long a request may take that names no deadline itself."""

MAX_MESSAGE_BYTES = 16 << 20
"""As kubelet and containerd have it."""

log = logging.getLogger(__name__)


class ImageProxy(grpc.GenericRpcHandler):
    """Passes requests on."""

    def __init__(self, containerd: Path, book: CredentialBook) -> None:
        """Pass them to the containerd that listens at a socket."""
        limits = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ]
        self._channel = grpc.insecure_channel(f"unix:{containerd}", options=limits)
        self._book = book

    def close(self) -> None:
        """End the connection to containerd."""
        self._channel.close()

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        """What answers a method; None if it is not of the image service."""
        method = handler_call_details.method
        if not method.startswith(PREFIXES):
            return None
        return grpc.unary_unary_rpc_method_handler(self._passing_on(method))

    def _passing_on(self, method: str) -> "Callable[[bytes, grpc.ServicerContext], bytes]":
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(method)

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            if method.endswith(PULL):
                self._remember(request)
            left_s = context.time_remaining()
            metadata = tuple(item for item in context.invocation_metadata() if item[0][0] != ":")
            try:
                return call(request, timeout=left_s or PULL_WITHIN_S, metadata=metadata)
            except grpc.RpcError as error:
                context.abort(error.code(), error.details() or "")

        return answer

    def _remember(self, request: bytes) -> None:
        pull = api.PullImageRequest.FromString(request)
        auth = pull.auth
        given = Credentials(auth.username, auth.password, auth.identity_token, auth.registry_token)
        try:
            if auth.auth:
                self._book.add_encoded(pull.image.image, auth.auth)
            elif given != Credentials():
                self._book.add(pull.image.image, given)
        except (RegistryError, OSError) as error:
            log.warning("credentials for %s are not kept: %s", pull.image.image, error)

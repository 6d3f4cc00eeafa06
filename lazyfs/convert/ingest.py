"""A layer of a source, read to its end by something that needs its decoded bytes.

Nothing that comes is trusted: the blob is held against its descriptor's digest and size, what
it decodes to against the configuration's diff ID, and only then is the result given.
"""

from collections.abc import Callable
from typing import TypeVar

import trio

from lazyfs.convert.decoding import DecodedLayer
from lazyfs.convert.feed import PIECES_AHEAD, Feed, pump
from lazyfs.convert.tarstream import Readable
from lazyfs.errors import ConversionError, DigestMismatchError
from registry.digest import Digest, DigestVerifier
from registry.interfaces import BlobReader
from registry.manifest import Descriptor

T = TypeVar("T")


async def read_layer(
    blob: BlobReader,
    descriptor: Descriptor,
    diff_id: Digest,
    on_progress: Callable[[int], None],
    use: Callable[[Readable], T],
    *,
    compressed: bool = True,
) -> T:
    """Read a whole layer, checked on its way.

    Args:
        blob: the layer's bytes, unverified.
        descriptor: what they must be.
        diff_id: digest of what they must decode to.
        on_progress: told of blob bytes read; called in a worker thread.
        use: takes the decoded bytes, in a worker thread. What it gives is to be believed only
            when this function returns it.
        compressed: whether the blob may be.

    Raises:
        ConversionError: the layer is broken, or ``use`` cannot use it.
        DigestMismatchError: it decodes to something else than the diff ID says.
        RegistryError: the blob cannot be read, or is not what the descriptor says.

    Cancelled: nothing is kept.
    """
    name = f"layer {descriptor.digest}"
    verifier = DigestVerifier(descriptor.digest, descriptor.size_bytes, name)
    send, receive = trio.open_memory_channel[bytes](PIECES_AHEAD)

    def see(piece: bytes) -> None:
        verifier.update(piece)
        on_progress(len(piece))

    def work() -> T:
        feed = Feed(receive, see)
        try:
            layer = DecodedLayer(feed, compressed=compressed)
            result = use(layer)
            layer.drain()
            verifier.finish()
            _check_diff_id(layer, diff_id, name)
        except ConversionError as error:
            # A blob that is not the promised one is the better message.
            feed.drain()
            verifier.finish()
            raise ConversionError(f"{name}: {error}") from error
        return result

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump, blob, send)
        return await trio.to_thread.run_sync(work)


def _check_diff_id(layer: DecodedLayer, diff_id: Digest, name: str) -> None:
    if diff_id.algorithm != "sha256":
        raise ConversionError(f"diff ID {diff_id}: only sha256 is supported")
    if layer.sha256() != diff_id.encoded:
        raise DigestMismatchError(
            f"{name}: decodes to {layer.size_bytes} bytes of sha256:{layer.sha256()}, "
            f"its diff ID is {diff_id}"
        )

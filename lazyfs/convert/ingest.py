"""From a layer in a source to a raw EROFS image in a temporary file.

Nothing that comes is trusted: the blob is held against its descriptor's digest and size, what
it decodes to against the configuration's diff ID, and only then is there an image.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from typing import BinaryIO, cast

import trio

from lazyfs.convert.build import build_image
from lazyfs.convert.decoding import DecodedLayer
from lazyfs.convert.feed import PIECES_AHEAD, Feed, pump
from lazyfs.convert.images import Image, copy_image
from lazyfs.convert.tarstream import Readable
from lazyfs.errors import ConversionError, DigestMismatchError
from lazyfs.seekable.mediatypes import LayerEncoding, is_erofs_layer
from registry.digest import Digest, DigestVerifier
from registry.interfaces import BlobReader
from registry.manifest import Descriptor

Build = Callable[[Readable, BinaryIO], Image]


def open_temporary() -> BinaryIO:
    """An unnamed file: whatever ends this process, nothing is left of it."""
    return cast(BinaryIO, tempfile.TemporaryFile(prefix="lazyfs-convert-"))


async def ingest(
    blob: BlobReader,
    descriptor: Descriptor,
    diff_id: Digest,
    on_progress: Callable[[int], None],
    chunk_size_bytes: int,
) -> Image:
    """Read a layer and make an image of it.

    Args:
        blob: the layer's bytes, unverified.
        descriptor: what they must be.
        diff_id: digest of what they must decode to.
        on_progress: told of blob bytes read; called in a worker thread.
        chunk_size_bytes: the image will be cut into chunks of this size.

    Raises:
        ConversionError: the layer is broken, or holds what an image cannot.
        DigestMismatchError: it decodes to something else than the diff ID says.
        RegistryError: the blob cannot be read, or is not what the descriptor says.

    Cancelled: nothing is kept.
    """
    name = f"layer {descriptor.digest}"
    verifier = DigestVerifier(descriptor.digest, descriptor.size_bytes, name)
    encoding = is_erofs_layer(descriptor.media_type)
    build: Build = copy_image
    if encoding is None:
        build = partial(build_image, chunk_size_bytes=chunk_size_bytes)
    send, receive = trio.open_memory_channel[bytes](PIECES_AHEAD)

    def see(piece: bytes) -> None:
        verifier.update(piece)
        on_progress(len(piece))

    def work() -> Image:
        feed = Feed(receive, see)
        spool = open_temporary()
        try:
            layer = DecodedLayer(feed, compressed=encoding is not LayerEncoding.RAW)
            image = build(layer, spool)
            layer.drain()
            verifier.finish()
            _check_diff_id(layer, diff_id, name)
        except ConversionError as error:
            spool.close()
            # A blob that is not the promised one is the better message.
            feed.drain()
            verifier.finish()
            raise ConversionError(f"{name}: {error}") from error
        except BaseException:
            spool.close()
            raise
        return image

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

"""A layer that can only be proven as a whole: fetched at mount, checked, then read locally.

While the blob streams through, the image is cut into chunks whose SHA-512 is noted; when
the whole blob turns out to have its digest, those notes are as good as a chunk table. The
chunks lie in the store like any other, are checked against the notes when they are read
back, and are fetched again if the store has lost them. The notes are kept for the next mount,
which believes them only if the content as a whole has its digest.
"""

import hashlib
import logging
import struct
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from cache.errors import CacheError
from cache.key import ChunkKey
from lazyfs.errors import (
    DigestMismatchError,
    ImageFormatError,
    LazyfsError,
    SourceUnavailableError,
)
from lazyfs.interfaces import BlobSource
from lazyfs.layer.blocking import BlockingStream
from lazyfs.layer.counters import LayerCounters
from lazyfs.layer.decoding import Readable, decoding
from lazyfs.layer.engine import Engine
from lazyfs.layer.failures import failure_of
from lazyfs.layer.paged import PagedReader
from lazyfs.layer.pages import PageMemory
from lazyfs.model import ByteRange
from lazyfs.plan import LayerPlan
from lazyfs.seekable.mediatypes import LayerEncoding
from registry.digest import Digest

CHUNK_BYTES = 1 << 20
MAX_IMAGE_BYTES = 1 << 40
"""An image that decodes to more is refused, so that a bomb ends somewhere."""

_NOTE = struct.Struct("<Q")
"""Length of the content; the SHA-512 of each chunk follow."""
_DIGEST_BYTES = 64

log = logging.getLogger(__name__)

Keep = Callable[[int, bytes], Awaitable[None]]


async def open_whole(
    plan: LayerPlan,
    source: BlobSource,
    counters: LayerCounters,
    engine: Engine,
    pages: PageMemory,
    number: int,
    name: str,
) -> "WholeLayer":
    """Fetch the blob, check it, and store its image.

    Args:
        plan: how.
        source: the blob.
        counters: of the layer.
        engine: of the mount.
        pages: of the mount.
        number: of the layer in ``pages``.
        name: says in log lines which image and layer it is.

    Raises:
        DigestMismatchError: the blob is not the one that the manifest names.
        ImageFormatError: it is not a zstd stream.
        SourceUnavailableError: it cannot be had.
    """
    layer = WholeLayer(plan, source, counters, engine, pages, number, name)
    await layer.fill()
    return layer


class WholeLayer(PagedReader):
    """An image in the store, each chunk provable by a digest noted when it came."""

    def __init__(
        self,
        plan: LayerPlan,
        source: BlobSource,
        counters: LayerCounters,
        engine: Engine,
        pages: PageMemory,
        number: int,
        name: str,
    ) -> None:
        """Describe the layer; nothing is fetched yet."""
        super().__init__(number, 0, pages, counters)
        self._plan = plan
        self._source = source
        self._engine = engine
        self._name = name
        self._digests: list[bytes] = []
        self._passing = trio.Lock()

    async def fill(self) -> None:
        """Have all in the store, with digests noted: as an earlier mount left it, or fetched.

        Raises:
            DigestMismatchError, ImageFormatError, SourceUnavailableError.
        """
        notes = self._engine.notes
        name = note_name(self._plan.descriptor.digest)
        if notes is not None and await self._recall(await notes.read(name)):
            return
        await self._fetch()
        if notes is not None:
            await notes.write(name, _NOTE.pack(self.size_bytes) + b"".join(self._digests))

    async def _recall(self, note: bytes | None) -> bool:
        """Whether all is in the store, as a note says and the content's own digest proves."""
        raw = self._plan.encoding is LayerEncoding.RAW
        proof = self._plan.descriptor.digest if raw else self._plan.diff_id
        if note is None or proof is None:
            return False
        size, digests = decode_note(note)
        content = hashlib.new(proof.algorithm)
        for index, digest in enumerate(digests):
            length = min(CHUNK_BYTES, size - index * CHUNK_BYTES)
            (chunk,) = await self._engine.store.load([(chunk_key(digest), 0, length)])
            if chunk is None:
                return False
            # The digest as well: what is read later is proven by it alone.
            if await trio.to_thread.run_sync(_sha512, chunk) != digest:
                break
            await trio.to_thread.run_sync(content.update, chunk)
        if content.hexdigest() != proof.encoded:
            log.warning("%s: what the cache has of it is wrong: fetching it again", self._name)
            return False
        self.size_bytes, self._digests = size, digests
        return True

    async def _fetch(self) -> None:
        """Fetch all, noting digests.

        Raises:
            DigestMismatchError, ImageFormatError, SourceUnavailableError.
        """
        wanted, diff_id = self._plan.descriptor.digest, self._plan.diff_id
        hasher = hashlib.new(wanted.algorithm)
        decoded = None if diff_id is None else hashlib.new(diff_id.algorithm)

        async def keep(index: int, chunk: bytes) -> None:
            digest = await trio.to_thread.run_sync(_sha512, chunk)
            if decoded is not None:
                await trio.to_thread.run_sync(decoded.update, chunk)
            self._digests.append(digest)
            self.size_bytes += len(chunk)
            if self.size_bytes > MAX_IMAGE_BYTES:
                raise ImageFormatError(f"image of more than {MAX_IMAGE_BYTES} bytes")
            await self._engine.keep(chunk_key(digest), chunk)

        await self._pass(0, keep, hasher.update)
        self._check("blob", wanted, hasher.hexdigest())
        if diff_id is not None and decoded is not None:
            self._check("content of the blob", diff_id, decoded.hexdigest())

    def _check(self, what: str, wanted: Digest, found: str) -> None:
        if found != wanted.encoded:
            self.counters.verification_failures += 1
            whole = ByteRange(0, self._source.size_bytes)
            raise DigestMismatchError.of_digests(
                f"{what} from {self._source.distrust(whole)}",
                str(wanted),
                f"{wanted.algorithm}:{found}",
            )

    async def read_proven(self, offset: int, length: int) -> bytes:
        """Bytes of the image, out of chunks that have the digest noted for them."""
        first, start = divmod(offset, CHUNK_BYTES)
        last = (offset + length - 1) // CHUNK_BYTES
        chunks = [
            await self._engine.decoded.get_or_make(
                (self._number, index), partial(self._chunk, index)
            )
            for index in range(first, last + 1)
        ]
        return b"".join(chunks)[start : start + length]

    def keys_over(self, where: ByteRange) -> list[tuple[int, ChunkKey]]:
        """Numbers and keys of the chunks under a range."""
        last = min(-(-where.end // CHUNK_BYTES), len(self._digests))
        return [
            (index, chunk_key(self._digests[index]))
            for index in range(where.offset // CHUNK_BYTES, last)
        ]

    async def _chunk(self, index: int) -> bytes:
        data = await self._stored(index)
        if data is not None:
            self.counters.cache_hits += 1
            return data
        self.counters.cache_misses += 1
        async with self._passing:  # one at a time: it may bring what others wait for
            data = await self._stored(index)
            if data is not None:
                return data
            try:
                return await self._again(index)
            except LazyfsError as error:
                self.counters.failed(error)
                self._report("cannot be read", index, error, "chunk_failed")
                raise

    async def _stored(self, index: int) -> bytes | None:
        """A chunk that the store has; a rotten one is dropped."""
        digest = self._digests[index]
        length = min(CHUNK_BYTES, self.size_bytes - index * CHUNK_BYTES)
        (data,) = await self._engine.store.load([(chunk_key(digest), 0, length)])
        if data is None:
            return None
        found = await trio.to_thread.run_sync(_sha512, data)
        if found == digest:
            return data
        self.counters.verification_failures += 1
        rotten = DigestMismatchError.of_digests(
            f"{len(data)} bytes", f"sha512:{digest.hex()}", f"sha512:{found.hex()}"
        )
        self._report("rotten in the cache, fetching it again", index, rotten, "chunk_rotten")
        try:
            await self._engine.store.discard(chunk_key(digest))
        except CacheError as error:
            log.warning("%s: chunk %d stays in the cache: %s", self._name, index, error)
        return None

    def _report(self, how: str, index: int, error: LazyfsError, event: str) -> None:
        failure = failure_of(self._name, f"chunk {index}", error, self._source.origin)
        self._engine.report(how, failure, event)

    async def _again(self, index: int) -> bytes:
        """Fetch a chunk that the store has lost: a range of a raw blob, else from the start."""
        raw = self._plan.encoding is LayerEncoding.RAW
        found: list[bytes] = []

        async def keep(number: int, chunk: bytes) -> None:
            if await trio.to_thread.run_sync(_sha512, chunk) != self._digests[number]:
                self.counters.verification_failures += 1
                raise DigestMismatchError(
                    f"chunk {number} of the image from {self._source.origin} has changed"
                )
            await self._engine.keep(chunk_key(self._digests[number]), chunk)
            if number == index:
                found.append(chunk)
                raise _EnoughError

        try:
            await self._pass(index if raw else 0, keep, lambda _: None)
        except _EnoughError:
            return found[0]
        raise SourceUnavailableError(f"{self._source.origin}: the blob ended before chunk {index}")

    async def _pass(self, first: int, keep: Keep, see: Callable[[bytes], None]) -> None:
        """Stream the blob, showing its bytes to ``see`` and its image's chunks to ``keep``.

        Only a raw blob may begin elsewhere than at chunk 0.
        """
        start = first * CHUNK_BYTES
        where = ByteRange(start, self._source.size_bytes - start)
        encoding = self._plan.encoding
        async with self._source.stream(where) as pieces:
            stream = BlockingStream(pieces, see)
            await trio.to_thread.run_sync(
                _cut, stream, encoding, first, keep, abandon_on_cancel=False
            )


class _EnoughError(Exception):
    """Ends a pass that has found its chunk."""


def decode_note(note: bytes) -> tuple[int, list[bytes]]:
    """Size and digests of the chunks; as many of these as the size needs, or none at all."""
    digests = [
        note[start : start + _DIGEST_BYTES] for start in range(_NOTE.size, len(note), _DIGEST_BYTES)
    ]
    size = _NOTE.unpack_from(note)[0] if len(note) >= _NOTE.size else 0
    fits = len(note) == _NOTE.size + -(-size // CHUNK_BYTES) * _DIGEST_BYTES
    return (size, digests) if fits else (0, [])


def note_name(blob: Digest) -> str:
    """Under which the note of a blob is kept."""
    return f"whole-{blob.algorithm}-{blob.encoded}"


def chunk_key(digest: bytes) -> ChunkKey:
    """Under which a chunk is stored."""
    return ChunkKey("sha512", digest.hex(), "data")


def _sha512(data: bytes) -> bytes:
    return hashlib.sha512(data).digest()


def _cut(stream: BlockingStream, encoding: LayerEncoding, first: int, keep: Keep) -> None:
    """Decode a blocking stream and hand its chunks to the event loop; runs in a thread."""
    index = first
    with decoding(stream, encoding) as reader:
        while chunk := _read_full(reader):
            trio.from_thread.run(keep, index, chunk)
            index += 1


def _read_full(reader: Readable) -> bytes:
    """The next chunk, short only at the end."""
    parts = []
    have = 0
    while have < CHUNK_BYTES and (data := reader.read(CHUNK_BYTES - have)):
        parts.append(data)
        have += len(data)
    return b"".join(parts)

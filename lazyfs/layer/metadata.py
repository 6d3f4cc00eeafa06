"""The chunk table and the dm-verity superblock of a layer, by one or two range requests.

In containerd's layout they lie side by side behind the chunks, the top of the hash tree behind
them, so that one request brings all that mounting needs. In that of the EROFS image
specification the tree is in the chunks, so its superblock costs a second one.
"""

from dataclasses import dataclass

from lazyfs.errors import DigestMismatchError, ImageFormatError, VerificationError
from lazyfs.interfaces import BlobSource
from lazyfs.model import ByteRange
from lazyfs.seekable.chunktable import MAX_TABLE_BYTES, ChunkTable, plain_table
from lazyfs.seekable.ondisk import SKIPPABLE_HEADER
from lazyfs.seekable.pointers import Pointers, TablePointer, TreePointer
from lazyfs.seekable.skippable import decode_skippable_header
from lazyfs.seekable.tables import check_table_digest, decode_table
from lazyfs.verity.leaves import LeafMemory
from lazyfs.verity.ondisk import SUPERBLOCK
from lazyfs.verity.params import VerityParams, decode_superblock
from lazyfs.verity.trusted import TrustedHashTree
from registry.retry import ask_again

HEAD_BYTES = 64 << 10
"""How much of the dm-verity payload is fetched along, at least, and in which unit: superblock,
upper levels, and the first leaves, which prove where the image's root is."""

MAX_HEAD_BYTES = 256 << 10

UPPER_LEVELS_SHARE = 1 / 64
"""Of a tree, about: with SHA-512 a block of 4 KiB has 64 digests, with others more."""

FIRST_LEAVES_BYTES = 32 << 10
"""What is wanted behind the upper levels; superblock and levels that are not full included."""

_HEADER = SKIPPABLE_HEADER.size_bytes


@dataclass(frozen=True, slots=True)
class VerityMetadata:
    """The dm-verity tree of a layer, of which nothing is proven yet but its root digest."""

    params: VerityParams
    root_digest: bytes
    payload: ByteRange
    """Superblock and tree: in the content if ``in_content``, else in the blob.
    ``fetch_hash_blocks`` reads it wherever it is."""
    in_content: bool
    head: bytes
    """The beginning of the payload, unproven."""

    def tree(self, leaves: LeafMemory | None = None) -> TrustedHashTree:
        """The tree, with what ``head`` holds of it already proven.

        Raises:
            ImageFormatError: the root digest is of another algorithm.
            HashBlockMismatchError: the top of the tree does not have the root digest.
        """
        tree = TrustedHashTree(self.params, self.root_digest, leaves)
        if self.params.data_blocks > 1:
            whole = min(len(self.head), tree.payload_size_bytes)
            whole -= whole % self.params.hash_block_size_bytes
            tree.add(ByteRange(0, whole), self.head[:whole])
        return tree


@dataclass(frozen=True, slots=True)
class LayerMetadata:
    """How a layer is read in parts, and what proves them; the same for every layout."""

    table: ChunkTable
    """Over the content: the image, with the tree behind it if ``verity.in_content``."""
    table_proven: bool
    """Whether the manifest has a digest for the table; without one only the tree proves."""
    image_size_bytes: int
    """Length of the EROFS image, with which the content begins."""
    verity: VerityMetadata | None

    @property
    def chunks_proven(self) -> bool:
        """Whether the digests of chunks prove them, without the tree."""
        return self.table_proven and bool(self.table.digest_size_bytes or not len(self.table))


async def fetch_metadata(
    pointers: Pointers, source: BlobSource, index: BlobSource | None = None
) -> LayerMetadata:
    """Fetch and check chunk table and dm-verity superblock.

    Args:
        pointers: what the manifest says.
        source: the layer's blob.
        index: the blob that the table lies in, if it is another one.

    Raises:
        DigestMismatchError: the table is not the one that the manifest promises.
        UnsupportedFeatureError: the table has a form that lazyfs does not know.
        ImageFormatError, PlanError: the metadata break the format or do not fit each other.
        SourceUnavailableError: they cannot be had.
    """
    pointer, tree = pointers.table, pointers.tree
    if pointer is None:
        table, behind = plain_table(pointers.chunks_end), b""
    else:
        beside = tree if tree and not tree.in_content and index is None else None
        data, table = await _fetch_table(pointer, pointers, index or source, beside)
        behind = data[pointer.where.length :]
    size = table.content_size_bytes
    verity: VerityMetadata | None = None
    if tree is not None and tree.in_content:
        size = tree.offset
        verity = await _tree_in_content(tree, table, source)
    elif tree is not None:
        verity = _tree_in_blob(tree, behind, source.size_bytes, size)
    proven = pointer is not None and pointer.digest is not None
    return LayerMetadata(table, proven, size, verity)


def plain_metadata(pointers: Pointers | None, blob_size_bytes: int) -> LayerMetadata:
    """Of a blob that is the content itself, of whose parts nothing is known.

    Args:
        pointers: to a table or tree that cannot be used.
        blob_size_bytes: length of the blob.
    """
    content = blob_size_bytes if pointers is None else pointers.chunks_end
    image = content
    if pointers is not None and pointers.tree is not None and pointers.tree.in_content:
        image = min(content, pointers.tree.offset)
    return LayerMetadata(plain_table(content), False, image, None)


async def fetch_hash_blocks(metadata: LayerMetadata, where: ByteRange, source: BlobSource) -> bytes:
    """Unproven bytes of the dm-verity payload, wherever it lies.

    Args:
        metadata: of the layer; it has a tree.
        where: relative to the start of the payload.
        source: the layer's blob.

    Raises:
        DigestMismatchError, ImageFormatError: a chunk that holds them is broken.
        SourceUnavailableError: they cannot be had.
    """
    if metadata.verity is None:
        raise AssertionError("the layer has no dm-verity tree")
    place = ByteRange(metadata.verity.payload.offset + where.offset, where.length)
    if metadata.verity.in_content:
        return await fetch_content(metadata.table, place, source)
    return await source.fetch(place)


async def fetch_content(table: ChunkTable, where: ByteRange, source: BlobSource) -> bytes:
    """A few bytes of the content, by way of the chunks that hold them.

    Raises:
        DigestMismatchError, ImageFormatError: a chunk is broken.
        SourceUnavailableError: a chunk cannot be had.
    """
    if not table.compressed and not table.digest_size_bytes:
        return await source.fetch(where)
    chunks = [
        (await _fetch_chunk(table, index, source), part) for index, part in table.parts(where)
    ]
    return b"".join([chunk[part.offset : part.end] for chunk, part in chunks])


async def _fetch_chunk(table: ChunkTable, index: int, source: BlobSource) -> bytes:
    """A chunk's content; who gives it wrong is named, and another host asked."""
    liars: list[str] = []
    while True:
        stored = await source.fetch(table.frame(index))
        try:
            table.verify(index, stored)
            return table.decode(index, stored)
        except (VerificationError, ImageFormatError):
            liars.append(source.distrust(table.frame(index)))
            if not ask_again(liars):
                raise


async def _fetch_table(
    pointer: TablePointer, pointers: Pointers, source: BlobSource, beside: TreePointer | None
) -> tuple[bytes, ChunkTable]:
    """The table, with its bytes and, if a tree lies ``beside`` it, the top of that.

    Who gives one of them wrong is named, and another host asked. A top that stays wrong is for
    those who use the tree: they can say what is wrong with it.
    """
    if pointer.where.length > MAX_TABLE_BYTES + _HEADER:
        raise ImageFormatError(f"{pointer.where.length} bytes where a chunk table should be")
    room = source.size_bytes - pointer.where.end
    along = min(_head_bytes(room) + _HEADER, room) if beside else 0
    span = ByteRange(pointer.where.offset, pointer.where.length + along)
    liars: list[str] = []
    while True:
        data = await source.fetch(span)
        try:
            proven = _proven(pointer, data[: pointer.where.length])
        except (DigestMismatchError, ImageFormatError):
            liars.append(source.distrust(span))
            if not ask_again(liars):
                raise
            continue
        end, compressed = pointers.chunks_end, pointers.compressed
        table = decode_table(proven, chunks_end=end, compressed=compressed)
        behind = data[pointer.where.length :]
        if beside is None or _is_top(beside, behind, source.size_bytes, table.content_size_bytes):
            return data, table
        liars.append(source.distrust(span))
        if not ask_again(liars):
            return data, table


def _head_bytes(tree_bytes: int) -> int:
    """How much of a tree's payload to fetch along, in whole units."""
    wanted = int(tree_bytes * UPPER_LEVELS_SHARE) + FIRST_LEAVES_BYTES
    return min(-(-wanted // HEAD_BYTES) * HEAD_BYTES, MAX_HEAD_BYTES)


def _is_top(tree: TreePointer, frame: bytes, blob_size_bytes: int, image_size_bytes: int) -> bool:
    """Whether a tree begins there that has the root digest."""
    try:
        _tree_in_blob(tree, frame, blob_size_bytes, image_size_bytes).tree()
    except (VerificationError, ImageFormatError):
        return False
    return True


def _proven(pointer: TablePointer, data: bytes) -> bytes:
    """The table without its frame, if it is the promised one."""
    if pointer.framed:
        length = _payload_length("chunk table", data, pointer.where)
        data = data[_HEADER : _HEADER + length]
    if pointer.digest is not None:
        check_table_digest(data, pointer.digest)
    return data


async def _tree_in_content(
    tree: TreePointer, table: ChunkTable, source: BlobSource
) -> VerityMetadata:
    """Find the superblock behind the image; the chunk that begins with it may hold more."""
    size = table.content_size_bytes
    if tree.offset + SUPERBLOCK.size_bytes > size:
        raise ImageFormatError(f"dm-verity tree at {tree.offset} of {size} bytes")
    chunk = table.chunk(table.index_at(tree.offset))
    room = min(HEAD_BYTES, max(SUPERBLOCK.size_bytes, chunk.end - tree.offset))
    head = await fetch_content(table, ByteRange(tree.offset, room), source)
    return _verity(tree, ByteRange(tree.offset, size - tree.offset), head, tree.offset)


def _tree_in_blob(
    tree: TreePointer, frame: bytes, blob_size_bytes: int, image_size_bytes: int
) -> VerityMetadata:
    """Take the beginning of the tree's frame."""
    space = ByteRange(tree.offset, blob_size_bytes - tree.offset)
    length = _payload_length("dm-verity tree", frame, space)
    payload = ByteRange(tree.offset + _HEADER, length)
    return _verity(tree, payload, frame[_HEADER : _HEADER + length], image_size_bytes)


def _verity(
    tree: TreePointer, payload: ByteRange, head: bytes, image_size_bytes: int
) -> VerityMetadata:
    params = decode_superblock(head)
    if tree.block_size_bytes not in (None, params.data_block_size_bytes):
        raise ImageFormatError(
            f"dm-verity tree with blocks of {params.data_block_size_bytes} bytes, promised were "
            f"{tree.block_size_bytes}"
        )
    if tree.in_content and tree.offset % params.hash_block_size_bytes:
        raise ImageFormatError(
            f"dm-verity tree at {tree.offset}, with hash blocks of {params.hash_block_size_bytes}"
        )
    params.check_covers(image_size_bytes)
    needed = TrustedHashTree(params, tree.root_digest).payload_size_bytes
    if params.data_blocks > 1 and needed > payload.length:
        raise ImageFormatError(
            f"dm-verity payload of {payload.length} bytes, the tree needs {needed}"
        )
    return VerityMetadata(params, tree.root_digest, payload, tree.in_content, head)


def _payload_length(what: str, frame: bytes, space: ByteRange) -> int:
    """Length of a skippable frame's payload, which must fit into ``space``."""
    try:
        return decode_skippable_header(frame, limit_bytes=space.length - _HEADER)
    except ImageFormatError as error:
        raise type(error)(f"{what} at byte {space.offset} of the blob: {error}") from error

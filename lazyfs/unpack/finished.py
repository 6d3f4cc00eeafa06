"""Whether an unpacked layer that is there already is what it must be."""

import hashlib
from collections.abc import Callable, Sequence

import trio

from lazyfs.convert.progress import ProgressTask
from lazyfs.errors import LazyfsError, UnpackError
from lazyfs.layer.blockproof import BlockProof, proof_in_content
from lazyfs.layer.contentfile import ContentFile
from lazyfs.layer.metadata import LayerMetadata
from lazyfs.layer.pieces import PIECE_BYTES, each_piece
from lazyfs.layer.placement import file_size, payload_offset, round_up
from lazyfs.seekable.pointers import TreePointer
from lazyfs.unpack.options import TreeChoice
from lazyfs.unpack.results import Sidecar
from lazyfs.unpack.tree import containerd_params
from lazyfs.verity.audit import BrokenBlock
from lazyfs.verity.build import HashTreeWriter
from lazyfs.verity.geometry import geometry
from lazyfs.verity.params import VerityParams
from registry.digest import Digest


async def check_by_tree(
    proof: BlockProof,
    file: ContentFile,
    image_size_bytes: int,
    workers: trio.CapacityLimiter,
    on_progress: Callable[[int], None] | None = None,
) -> None:
    """Hold a tree in a file against its root, then the image before it against the tree.

    Raises:
        HashBlockMismatchError, DataBlockMismatchError: the first that is broken.
        OSError: the file cannot be read.
    """
    broken: list[BrokenBlock] = []
    await trio.to_thread.run_sync(proof.audit, broken.append, limiter=workers)
    if broken:
        raise broken[0].error(proof.params.algorithm)
    failures: list[LazyfsError] = []

    def check(offset: int, length: int) -> None:
        found = proof.check(offset, file.read(offset, length))
        failures.extend(one.error(proof.params.algorithm) for one in found[:1])

    await each_piece(image_size_bytes, check, workers, on_progress)
    if failures:
        raise failures[0]


class FinishedLayer:
    """A file that has its final name."""

    def __init__(
        self,
        file: ContentFile,
        size_bytes: int,
        sidecar: Sidecar | None,
        metadata: LayerMetadata | None,
        tree: TreePointer | None,
        digests: Sequence[Digest],
        choice: TreeChoice,
    ) -> None:
        """Describe what is there and what is wanted.

        Args:
            file: open for reading.
            size_bytes: its length.
            sidecar: what lies beside it.
            metadata: of the layer; None: it has to be decoded from its start.
            tree: the one in what it then decodes to.
            digests: SHA-256 of the layer's content, all that are known.
            choice: which tree there must be.
        """
        self._file = file
        self._size_bytes = size_bytes
        self._sidecar = sidecar
        self._metadata = metadata
        self._tree = tree
        self._digests = digests
        self._choice = choice
        if metadata is not None:
            self._image_size_bytes = metadata.image_size_bytes
        elif tree is not None:
            self._image_size_bytes = tree.offset
        else:
            self._image_size_bytes = size_bytes if sidecar is None else sidecar.hash_offset

    async def check(self, workers: trio.CapacityLimiter, task: ProgressTask) -> str | None:
        """What is wrong with it, if anything is.

        Raises:
            OSError: it cannot be read.
        """
        try:
            proof = await trio.to_thread.run_sync(self._proof)
            if proof is not None:
                task.stage("checking blocks", self._image_size_bytes)
                size = self._image_size_bytes
                await check_by_tree(proof, self._file, size, workers, task.advance)
            if proof is None or self._choice is not TreeChoice.LAYER:
                task.stage("checking", self._image_size_bytes)
                await trio.to_thread.run_sync(self._check_content, task.advance, limiter=workers)
        except LazyfsError as error:
            return str(error)
        return None

    def _proof(self) -> BlockProof | None:
        """The tree behind the image; None if there is to be none."""
        verity = None if self._metadata is None else self._metadata.verity
        offset, size = 0, self._image_size_bytes
        params: VerityParams | None = None
        root = b""
        if self._choice is TreeChoice.CONTAINERD:
            params = containerd_params(self._file, self._image_size_bytes)
            offset = round_up(self._image_size_bytes, params.data_block_size_bytes)
            size = offset + geometry(params).payload_size_bytes
            root = b"" if self._sidecar is None else bytes.fromhex(self._sidecar.root_hash)
        elif self._choice is TreeChoice.LAYER and self._metadata is not None:
            size = file_size(self._metadata)
            if verity is not None:
                params, root = verity.params, verity.root_digest
                offset = payload_offset(self._metadata, verity)
        elif self._choice is TreeChoice.LAYER and self._tree is not None:
            proof = proof_in_content(self._file, self._size_bytes, self._tree)
            params, root, offset = proof.params, self._tree.root_digest, self._tree.offset
            size = self._size_bytes
        if self._size_bytes != size:
            raise UnpackError(f"it has {self._size_bytes} bytes, not {size}")
        if self._sidecar != (None if params is None else Sidecar(root.hex(), offset)):
            raise UnpackError("its sidecar is another one")
        if params is None:
            return None
        return BlockProof(self._file, self._image_size_bytes, offset, params, root)

    def _check_content(self, on_progress: Callable[[int], None]) -> None:
        """Hold the image against what the manifest promises of it."""
        verity = None if self._metadata is None else self._metadata.verity
        if self._digests and self._tree is None:
            digest = hashlib.sha256()
            self._read(digest.update, on_progress)
            for wanted in self._digests:
                self._compare(digest.hexdigest(), wanted.encoded)
        elif verity and verity.params.data_block_size_bytes == verity.params.hash_block_size_bytes:
            # The digest covers a tree that is not there any more. Its root is as good.
            tree = HashTreeWriter(
                self._image_size_bytes,
                lambda offset, data: None,
                algorithm=verity.params.algorithm,
                block_size_bytes=verity.params.data_block_size_bytes,
                salt=verity.params.salt,
                hash_type=verity.params.hash_type,
            )
            self._read(lambda data: tree.add_digests(tree.hash_blocks(data)), on_progress)
            root, _ = tree.finish()
            self._compare(root.hex(), verity.root_digest.hex())
        else:
            raise UnpackError("nothing says what it must be")

    def _compare(self, found: str, wanted: str) -> None:
        if found != wanted:
            raise UnpackError(f"its content has digest {found}, not {wanted}")

    def _read(self, take: Callable[[bytes], None], on_progress: Callable[[int], None]) -> None:
        for offset in range(0, self._image_size_bytes, PIECE_BYTES):
            trio.from_thread.check_cancelled()
            data = self._file.read(offset, min(PIECE_BYTES, self._image_size_bytes - offset))
            take(data)
            on_progress(len(data))

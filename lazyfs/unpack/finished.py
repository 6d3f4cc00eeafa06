"""Whether an unpacked layer that is there already is what it must be."""

import hashlib
from collections.abc import Callable

import trio

from lazyfs.convert.progress import ProgressTask
from lazyfs.errors import LazyfsError, UnpackError
from lazyfs.layer.blockproof import BlockProof
from lazyfs.layer.contentfile import ContentFile
from lazyfs.layer.metadata import LayerMetadata
from lazyfs.layer.pieces import PIECE_BYTES, each_piece
from lazyfs.layer.placement import file_size, payload_offset, round_up
from lazyfs.unpack.options import TreeChoice
from lazyfs.unpack.results import Sidecar
from lazyfs.unpack.tree import containerd_params
from lazyfs.verity.audit import BrokenBlock
from lazyfs.verity.build import HashTreeBuilder
from lazyfs.verity.geometry import geometry
from lazyfs.verity.params import VerityParams
from registry.digest import Digest


class FinishedLayer:
    """A file that has its final name."""

    def __init__(
        self,
        file: ContentFile,
        size_bytes: int,
        sidecar: Sidecar | None,
        metadata: LayerMetadata | None,
        diff_id: Digest,
        choice: TreeChoice,
    ) -> None:
        """Describe what is there and what is wanted.

        Args:
            file: open for reading.
            size_bytes: its length.
            sidecar: what lies beside it.
            metadata: of the layer; None: it has to be decoded from its start.
            diff_id: SHA-256 of the layer's content.
            choice: which tree there must be.
        """
        self._file = file
        self._size_bytes = size_bytes
        self._sidecar = sidecar
        self._metadata = metadata
        self._diff_id = diff_id
        self._choice = choice
        if metadata is not None:
            self._image_size_bytes = metadata.image_size_bytes
        else:
            self._image_size_bytes = size_bytes if sidecar is None else sidecar.hash_offset

    async def check(self, workers: trio.CapacityLimiter, task: ProgressTask) -> str | None:
        """What is wrong with it, if anything is.

        Raises:
            OSError: it cannot be read.
        """
        task.stage("checking", self._image_size_bytes)
        try:
            proof = await trio.to_thread.run_sync(self._proof)
            if proof is not None:
                await self._check_blocks(proof, workers)
            await trio.to_thread.run_sync(self._check_content, task.advance, limiter=workers)
        except LazyfsError as error:
            return str(error)
        return None

    def _proof(self) -> BlockProof | None:
        """The tree behind the image, audited; None if there is to be none."""
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
        if self._size_bytes != size:
            raise UnpackError(f"it has {self._size_bytes} bytes, not {size}")
        if self._sidecar != (None if params is None else Sidecar(root.hex(), offset)):
            raise UnpackError("its sidecar is another one")
        if params is None:
            return None
        proof = BlockProof(self._file, self._image_size_bytes, offset, params, root)
        broken: list[BrokenBlock] = []
        proof.audit(broken.append)
        if broken:
            raise broken[0].error(params.algorithm)
        return proof

    async def _check_blocks(self, proof: BlockProof, workers: trio.CapacityLimiter) -> None:
        failures: list[LazyfsError] = []

        def work(offset: int, length: int) -> None:
            broken = proof.check(offset, self._file.read(offset, length))
            failures.extend(one.error(proof.params.algorithm) for one in broken[:1])

        await each_piece(self._image_size_bytes, work, workers)
        if failures:
            raise failures[0]

    def _check_content(self, on_progress: Callable[[int], None]) -> None:
        """Hold the content against what the manifest promises of it."""
        verity = None if self._metadata is None else self._metadata.verity
        if verity is not None and verity.in_content and self._choice is not TreeChoice.LAYER:
            # The diff ID covers a tree that is not there: make the tree, its root will do.
            tree = HashTreeBuilder(
                algorithm=verity.params.algorithm,
                block_size_bytes=verity.params.data_block_size_bytes,
                salt=verity.params.salt,
                hash_type=verity.params.hash_type,
            )
            self._read(self._image_size_bytes, tree.add, on_progress)
            found, wanted = tree.finish().root_digest.hex(), verity.root_digest.hex()
        else:
            metadata = self._metadata
            size = self._image_size_bytes if metadata is None else metadata.table.content_size_bytes
            digest = hashlib.new(self._diff_id.algorithm)
            self._read(size, digest.update, on_progress)
            found, wanted = digest.hexdigest(), self._diff_id.encoded
        if found != wanted:
            raise UnpackError(f"its content has digest {found}, not {wanted}")

    def _read(
        self, size: int, take: Callable[[bytes], None], on_progress: Callable[[int], None]
    ) -> None:
        for offset in range(0, size, PIECE_BYTES):
            trio.from_thread.check_cancelled()
            data = self._file.read(offset, min(PIECE_BYTES, size - offset))
            take(data)
            on_progress(len(data))

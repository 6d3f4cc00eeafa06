"""Media types of EROFS layers, in both layouts."""

from enum import StrEnum

from lazyfs.errors import PlanError

RAW_LAYER = "application/vnd.erofs.layer.v1"
ZSTD_LAYER = RAW_LAYER + "+zstd"
"""containerd's."""

SPEC_RAW_LAYER = "application/vnd.erofs"
SPEC_ZSTD_LAYER = SPEC_RAW_LAYER + "+zstd"
CHUNK_INDEX_LAYER = "application/vnd.erofs.chunk-index.v1"
"""The EROFS image specification's (section 2)."""


class Layout(StrEnum):
    """How a seekable blob is laid out and described."""

    CONTAINERD = "containerd"
    """Chunk table and dm-verity tree in skippable frames (containerd pull request 12764)."""
    EROFS_SPEC = "erofs-spec"
    """The EROFS image specification: the tree is in the chunks, the chunk index behind them."""


class LayerEncoding(StrEnum):
    """How the blob of a layer wraps its bytes."""

    RAW = "raw"
    ZSTD = "zstd"
    GZIP = "gzip"
    """Of device blobs only: no EROFS layer is gzipped."""


_LAYOUTS = {RAW_LAYER: Layout.CONTAINERD, SPEC_RAW_LAYER: Layout.EROFS_SPEC}


def layout_of(media_type: str) -> Layout | None:
    """Whose media type of an EROFS layer it is; None for any other media type."""
    return _LAYOUTS.get(media_type.partition("+")[0])


def is_erofs_layer(media_type: str) -> LayerEncoding | None:
    """The encoding of an EROFS layer, or None for any other media type.

    Raises:
        PlanError: an EROFS layer in an encoding that lazyfs does not know.
    """
    base, plus, suffix = media_type.partition("+")
    if base not in _LAYOUTS:
        return None
    if not plus:
        return LayerEncoding.RAW
    if suffix == "zstd":
        return LayerEncoding.ZSTD
    raise PlanError(f"EROFS layer in unknown encoding: media type {media_type!r}")


def device_encoding(media_type: str) -> LayerEncoding:
    """How a blob with the role ``device`` wraps its bytes: its media type's suffix says it.

    Raises:
        PlanError: a suffix that lazyfs does not know.
    """
    _, plus, suffix = media_type.rpartition("+")
    if not plus:
        gzipped = media_type.endswith(".tar.gzip")  # Docker's media types have no suffix
        return LayerEncoding.GZIP if gzipped else LayerEncoding.RAW
    try:
        return LayerEncoding(suffix)
    except ValueError:
        raise PlanError(f"device blob in unknown encoding: media type {media_type!r}") from None

"""The four codecs: bytes of a pcluster in, bytes of its extent out, never more than asked."""

import lzma
import zlib

import lz4.block  # type: ignore[import-untyped]
import zstandard

from lazyfs.erofs import ondisk
from lazyfs.erofs.compressed.lz4prefix import decode_prefix
from lazyfs.errors import ImageFormatError, UnsupportedFeatureError

_RAW_DEFLATE = -15
_LZ4_MAX_RATIO = 255
_LZMA_MIN_DICT_BYTES = 4096
_LZMA_SIZE_UNKNOWN = 0xFFFFFFFFFFFFFFFF
_ZSTD_MAX_WINDOW_BYTES = 1 << (ondisk.Z_EROFS_PCLUSTER_MAX_DSIZE - 1).bit_length()


def decompress(algorithm: int, stored: bytes, length: int, *, partial: bool, padded: bool) -> bytes:
    """Decompress a pcluster.

    Args:
        algorithm: ``Z_EROFS_COMPRESSION_*``.
        stored: the pcluster.
        length: of the extent, in bytes.
        partial: the extent is only the first part of what the pcluster holds.
        padded: the compressed data ends where the pcluster ends, zeros come before it
            (LZ4_0PADDING, which every algorithm but old LZ4 has).

    Raises:
        ImageFormatError: the data is broken or does not hold exactly that.
        UnsupportedFeatureError: an unknown algorithm.
    """
    if algorithm == ondisk.Z_EROFS_COMPRESSION_LZ4 and not padded:
        return decode_prefix(stored, length)
    data = stored.lstrip(b"\0")
    if not data:
        raise ImageFormatError("pcluster: nothing but zeros")
    try:
        decode = _CODECS[algorithm]
    except KeyError:
        raise UnsupportedFeatureError(f"pcluster: compression algorithm {algorithm}") from None
    try:
        result = decode(data, length, partial)
    except (lz4.block.LZ4BlockError, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
        raise ImageFormatError(f"pcluster: {error}") from error
    if len(result) != length:
        raise ImageFormatError(f"pcluster: {len(result)} bytes decompressed, not {length}")
    return result


def _lz4(data: bytes, length: int, partial: bool) -> bytes:
    room = length
    if partial:
        room = min(len(data) * _LZ4_MAX_RATIO, ondisk.Z_EROFS_PCLUSTER_MAX_DSIZE)
        room = max(room, length)
    result: bytes = lz4.block.decompress(data, uncompressed_size=room)
    return result[:length] if partial else result


def _lzma(data: bytes, length: int, partial: bool) -> bytes:
    """MicroLZMA: LZMA whose first byte, always 0, is replaced by the inverted properties.

    With the header of a ``.lzma`` file before it liblzma checks the exact length too. No
    match reaches farther back than the output, so its length bounds the dictionary.
    """
    size = _LZMA_SIZE_UNKNOWN if partial else length
    header = (
        bytes([data[0] ^ 0xFF])
        + max(length, _LZMA_MIN_DICT_BYTES).to_bytes(4, "little")
        + size.to_bytes(8, "little")
    )
    decoder = lzma.LZMADecompressor(format=lzma.FORMAT_ALONE)
    result = decoder.decompress(header + b"\0" + data[1:], max_length=length)
    if not (partial or decoder.eof):
        result += decoder.decompress(b"", max_length=1)
    return result


def _deflate(data: bytes, length: int, partial: bool) -> bytes:
    decoder = zlib.decompressobj(_RAW_DEFLATE)
    result = decoder.decompress(data, length)
    if not (partial or decoder.eof):
        result += decoder.decompress(decoder.unconsumed_tail, 1)
        if not decoder.eof:
            raise ImageFormatError("pcluster: the deflate stream does not end")
    return result


def _zstd(data: bytes, length: int, partial: bool) -> bytes:
    decoder = zstandard.ZstdDecompressor(max_window_size=_ZSTD_MAX_WINDOW_BYTES)
    with decoder.stream_reader(data) as reader:
        result: bytes = reader.read(length)
        if not partial and reader.read(1):
            raise ImageFormatError(f"pcluster: more than {length} bytes of zstd data")
    return result


_CODECS = {
    ondisk.Z_EROFS_COMPRESSION_LZ4: _lz4,
    ondisk.Z_EROFS_COMPRESSION_LZMA: _lzma,
    ondisk.Z_EROFS_COMPRESSION_DEFLATE: _deflate,
    ondisk.Z_EROFS_COMPRESSION_ZSTD: _zstd,
}

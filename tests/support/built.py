"""Building an image from tar bytes in a test."""

import io
import tempfile

from lazyfs.convert.build import BuildStatistics, build_image


def built(tar: bytes) -> bytes:
    return built_with_statistics(tar)[0]


def built_with_statistics(tar: bytes) -> tuple[bytes, BuildStatistics]:
    with tempfile.TemporaryFile() as spool:
        image = build_image(io.BytesIO(tar), spool)
        return image.read(0, image.size_bytes), image.statistics

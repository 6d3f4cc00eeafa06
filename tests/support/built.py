"""Building an image from tar bytes in a test."""

import io
import tempfile
from collections.abc import Sequence

from lazyfs.convert.build import BuildOptions, BuildStatistics, build_image
from lazyfs.erofs.build.front import HotRange


def built(tar: bytes, hot: Sequence[HotRange] = ()) -> bytes:
    return built_with_statistics(tar, hot)[0]


def built_with_statistics(
    tar: bytes, hot: Sequence[HotRange] = ()
) -> tuple[bytes, BuildStatistics]:
    with tempfile.TemporaryFile() as spool:
        image = build_image(io.BytesIO(tar), spool, options=BuildOptions(hot=hot))
        return image.read(0, image.size_bytes), image.statistics

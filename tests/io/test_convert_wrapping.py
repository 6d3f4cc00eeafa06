"""From an image to a blob: the same bytes whatever the number of workers."""

import hashlib
import io
import random
import subprocess

import pytest
import trio

from lazyfs.convert.options import ConvertOptions
from lazyfs.convert.results import WrappedImage
from lazyfs.convert.wrapping import check_fits, wrap_image
from lazyfs.errors import ConversionError
from tests.support.seekable_blob import make_blob


class BytesImage:
    """An image in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size_bytes = len(data)

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]

    @property
    def borders(self) -> list[int]:
        return []

    def close(self) -> None:
        pass


IMAGE = random.Random(9).randbytes(500_000) + bytes(300_000)


async def wrap(data: bytes, options: ConvertOptions) -> tuple[bytes, WrappedImage, int]:
    file = io.BytesIO()
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count

    limiter = trio.CapacityLimiter(options.jobs)
    wrapped = await wrap_image(BytesImage(data), file, options, limiter, progress)
    return file.getvalue(), wrapped, done


@pytest.mark.parametrize("jobs", [1, 2, 7])
@pytest.mark.parametrize("verity", [False, True])
async def test_blob_equals_the_plain_writer(jobs, verity):
    options = ConvertOptions(chunk_size_bytes=64 << 10, jobs=jobs, verity=verity)
    blob, wrapped, done = await wrap(IMAGE, options)
    expected = make_blob(IMAGE, 64 << 10, verity=verity)
    assert blob == expected.data
    assert wrapped.annotations == expected.annotations.encode()
    assert wrapped.digest.encoded == hashlib.sha256(blob).hexdigest()
    assert wrapped.size_bytes == len(blob)
    assert wrapped.diff_id.encoded == hashlib.sha256(IMAGE).hexdigest()
    assert (wrapped.image_size_bytes, wrapped.chunks) == (800_000, 13)
    assert done == len(IMAGE)


async def test_other_options_give_other_blobs():
    base = ConvertOptions(chunk_size_bytes=64 << 10)
    others = [
        ConvertOptions(chunk_size_bytes=128 << 10),
        ConvertOptions(chunk_size_bytes=64 << 10, level=19),
        ConvertOptions(chunk_size_bytes=64 << 10, verity=False),
        ConvertOptions(chunk_size_bytes=64 << 10, verity_block_size_bytes=512),
    ]
    blobs = [(await wrap(IMAGE, options))[0] for options in (base, *others)]
    assert len(set(blobs)) == len(blobs)
    for blob in blobs:
        out = subprocess.run(["zstd", "-dc"], input=blob, capture_output=True, check=True).stdout
        assert out == IMAGE


async def test_an_empty_image_is_refused():
    with pytest.raises(ConversionError, match="empty image"):
        await wrap(b"", ConvertOptions())


def test_what_cannot_be_written_is_refused_beforehand():
    check_fits(100 << 30, ConvertOptions())
    with pytest.raises(ConversionError, match="choose a larger --chunk-size"):
        check_fits(10 << 30, ConvertOptions(chunk_size_bytes=4096))
    with pytest.raises(ConversionError, match="--verity-block-size"):
        check_fits(300 << 30, ConvertOptions())
    check_fits(300 << 30, ConvertOptions(verity_block_size_bytes=64 << 10))
    check_fits(300 << 30, ConvertOptions(verity=False))


@pytest.mark.parametrize(
    "values",
    [
        {"chunk_size_bytes": 0},
        {"chunk_size_bytes": 128 << 20},
        {"chunk_size_bytes": 5000},
        {"verity_block_size_bytes": 3000},
        {"verity_block_size_bytes": 256},
        {"chunk_size_bytes": 4096, "verity_block_size_bytes": 8192},
        {"level": 23},
        {"jobs": 0},
    ],
)
def test_options_that_cannot_work_are_refused(values):
    with pytest.raises(ConversionError):
        ConvertOptions(**values)

"""From an image to a blob: the same bytes whatever the number of workers."""

import hashlib
import random
import subprocess
import tempfile
from collections.abc import Sequence

import pytest
import trio

from lazyfs.convert.options import ConvertOptions
from lazyfs.convert.results import WrappedImage
from lazyfs.convert.wrapping import BlobFiles, BlobMaker, check_fits
from lazyfs.errors import ConversionError
from lazyfs.model import ByteRange
from lazyfs.seekable.mediatypes import Layout
from tests.support.seekable_blob import make_blob


class BytesImage:
    """An image in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size_bytes = len(data)

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]

    early_start = 0

    @property
    def borders(self) -> list[int]:
        return []


IMAGE = random.Random(9).randbytes(500_000) + bytes(300_000)


async def wrap(
    data: bytes, options: ConvertOptions, early: Sequence[ByteRange] = ()
) -> tuple[bytes, WrappedImage, int]:
    """The blob of an image; chunks that are compressed early are told in two parts."""
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count

    limiter = trio.CapacityLimiter(options.jobs)
    with BlobFiles() as files, tempfile.TemporaryFile() as spool:
        spool.write(data)
        spool.flush()
        maker = BlobMaker(files, options, limiter)
        send, receive = trio.open_memory_channel[Sequence[ByteRange]](2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(maker.begin, spool, receive)
            with send:
                await send.send(early[:1])
                await send.send(early[1:])
        wrapped = await maker.finish(BytesImage(data), progress)
        blob = b"".join([piece async for piece in maker.pieces(lambda _: None)])
    return blob, wrapped, done


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


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("verity", [False, True])
@pytest.mark.parametrize("some", [slice(0, 1), slice(3, 9), slice(12), slice(0, 12, 5)])
async def test_what_is_compressed_early_changes_nothing(layout, verity, some):
    options = ConvertOptions(layout=layout, chunk_size_bytes=64 << 10, jobs=3, verity=verity)
    chunks = [ByteRange(start, 64 << 10) for start in range(0, 12 * (64 << 10), 64 << 10)]
    never = [ByteRange(5, 1000), ByteRange(0, 4096)]  # no chunks of the image in the end
    assert await wrap(IMAGE, options, [*chunks[some], *never]) == await wrap(IMAGE, options)


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

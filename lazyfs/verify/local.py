"""A local EROFS image: read through once for the disk's sake, then every structure of it."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import trio

from lazyfs.convert.progress import Progress, ProgressTask
from lazyfs.layer.contentfile import ContentFile
from lazyfs.layer.pieces import PIECE_BYTES
from lazyfs.model import ByteRange
from lazyfs.verify.content import Content
from lazyfs.verify.findings import Kind, LayerReport, Report, place
from lazyfs.verify.structure import check_structure


async def verify_local(name: str, paths: Sequence[str], progress: Progress) -> Report:
    """Check an image in a file.

    Args:
        name: of the image.
        paths: the image, then its devices.
        progress: shows each file.

    Raises:
        OSError: a file cannot be opened.
    """
    layer = LayerReport(1, "")
    report = Report(name, layers=[layer])
    with ExitStack() as files:
        contents = []
        for path in paths:
            task = progress.begin(path)
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            files.callback(os.close, descriptor)
            contents.append(
                await trio.to_thread.run_sync(_read_through, descriptor, path, layer, task)
            )
            task.finish()
        await trio.to_thread.run_sync(check_structure, contents, layer.findings, layer.counts)
    layer.counts.image_bytes = contents[0].size_bytes
    return report


def _read_through(descriptor: int, path: str, report: LayerReport, task: ProgressTask) -> Content:
    """Read a file to its end; what the disk does not give is a finding."""
    file = ContentFile(descriptor, path)
    size = os.lseek(descriptor, 0, os.SEEK_END)
    broken = []
    task.stage("reading", size)
    for offset in range(0, size, PIECE_BYTES):
        trio.from_thread.check_cancelled()
        where = ByteRange(offset, min(PIECE_BYTES, size - offset))
        try:
            file.read(*where)
        except OSError as error:
            broken.append(where)
            report.findings.add(Kind.BLOB, error, file=Path(path).name, **place("image", where))
        task.advance(where.length)
    return Content(file, size, broken)

"""Check every chunk of a seekable layer blob in a file, with nothing but the pure parts.

usage: python examples/verify_blob.py BLOB

No annotations are needed: the frames of the blob are walked to find its chunk table. Without
them nothing proves the table itself, so this shows that a blob is whole, not whose it is.
"""

import sys
from pathlib import Path

from lazyfs.seekable.frames import decompress_chunk, verify_frame
from lazyfs.seekable.tables import decode_table
from lazyfs.seekable.walk import find_metadata
from lazyfs.steps import run


def main(path: str) -> None:
    """Print one line for the blob; an error ends the program."""
    blob = Path(path).read_bytes()
    found = run(
        find_metadata(len(blob)), lambda need: blob[need.offset : need.offset + need.length]
    )
    if found is None:
        raise SystemExit(f"{path}: no chunk table")
    table = decode_table(
        blob[found.chunk_table.offset + 8 : found.chunk_table.end],
        chunks_end=found.chunk_table.offset,
    )
    for index in range(len(table)):
        where = table.frame(index)
        frame = blob[where.offset : where.end]
        digest = table.digest(index)
        if digest is not None:
            verify_frame(frame, digest)
        decompress_chunk(frame, table.chunk(index).length)
    print(f"{path}: {len(table)} chunks, {table.content_size_bytes} bytes of image, all good")


if __name__ == "__main__":
    main(sys.argv[1])

"""Reads files at random and compares each with its digest, until it is told to stop.

    checking_reader.py ROOT DIGESTS.json STOP SEED

Every read goes to the file system and not to the page cache. Prints the number of files that were
read; ends with status 1 and a word of what was wrong at the first error or wrong byte.
"""

import hashlib
import json
import os
import random
import sys
from pathlib import Path

PIECES = (4096, 65536, 262144, 1 << 20)


def read(path: Path, piece: int) -> str:
    """SHA-256 of a file, read in pieces, none of them from the page cache."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while data := file.read(piece):
            digest.update(data)
    return digest.hexdigest()


def main() -> int:
    root, known, stop = (Path(word) for word in sys.argv[1:4])
    digests = json.loads(known.read_text())
    choice = random.Random(sys.argv[4])
    reads = 0
    while not stop.exists():
        name = choice.choice(sorted(digests))
        try:
            found = read(root / name, choice.choice(PIECES))
        except OSError as error:
            sys.stderr.write(f"{name}: {error}\n")
            return 1
        if found != digests[name]:
            sys.stderr.write(f"{name}: wrong bytes\n")
            return 1
        reads += 1
    sys.stdout.write(f"{reads}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

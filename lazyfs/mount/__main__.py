"""The daemon in the background; ``lazyfs.mount.start`` runs this file, users say ``lazyfs mount``.

Run as a file, it finds the package that its starter uses, installed or not, without an
environment variable that would reach the programs which it runs itself.
"""

import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lazyfs.mount.background import main

if __name__ == "__main__":
    sys.exit(main())

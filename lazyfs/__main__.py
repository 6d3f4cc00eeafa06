"""``python -m lazyfs``: the same as the ``lazyfs`` command."""

import sys

from lazyfs.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

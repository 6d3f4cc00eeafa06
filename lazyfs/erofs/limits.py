"""How much of anything lazyfs takes from an image before it calls the image broken."""

MIN_BLOCK_BITS = 9
"""512 bytes: the smallest block that the kernel takes."""

MAX_BLOCK_BITS = 16
"""64 KiB: the largest page size that Linux runs with."""

MAX_EXTRA_DEVICES = 1024
"""Slots of the device table; 128 bytes each are read at mount."""

MAX_ADDRESS = (1 << 63) - 1
"""File offsets and device addresses are signed 64-bit numbers in Linux."""

MAX_NEED_BYTES = 1024 * 1024
"""The largest single request for bytes (also the largest pcluster)."""

METADATA_WINDOW_BYTES = 4096
"""Inodes and index records are asked for in aligned windows of at most this size."""

MAX_MAP_ENTRIES = 2048
"""Chunk index entries or pclusters that one ``extents`` call looks at."""

MAX_NAME_BYTES = 255
"""``EROFS_NAME_LEN``; also the longest extended attribute name in Linux."""

MAX_LINK_BYTES = 4095
"""``PATH_MAX`` without its NUL."""

MAX_XATTR_BYTES = 4 * 1024 * 1024
"""Names and values of one inode together (Linux allows 64 KiB a value)."""

MAX_XATTRS = 10_000
"""Attributes of one inode (as many short names as Linux can list)."""

MAX_RUNS_PER_READ = 1024
"""Runs of file data that any read may touch ..."""

MIN_MEAN_RUN_BYTES = 512
"""... and one more for this many bytes: no writer makes smaller extents than blocks."""

MAX_NANOSECONDS = 999_999_999

MAX_SUMMED_EXTENTS = 1 << 20
"""Encoded extents of 4 bytes, whose addresses are the sums of the lengths before them."""

MAX_KEPT_WINDOWS = 4
"""Windows of the compression index of one file that stay in memory."""

MAX_KEPT_MAPS = 64
"""Compressed files whose map header, and a little of whose index, stays in memory."""

MAX_KEPT_EXTENTS = 4096
"""Extents of compressed files that stay in memory."""

"""The EROFS on-disk format as pure code: bytes in, values out (see README.md)."""

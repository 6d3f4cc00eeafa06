"""CRC-32C (Castagnoli) as EROFS uses it: reflected, and not inverted at the end."""

_POLYNOMIAL = 0x82F63B78


def _row(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
    return byte


_TABLE = tuple(_row(byte) for byte in range(256))


def crc32c(data: bytes, seed: int = 0xFFFFFFFF) -> int:
    """The register after ``data``, beginning with ``seed``; callers invert if they want to."""
    table = _TABLE
    crc = seed
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc

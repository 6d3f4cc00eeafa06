"""LZ4 block decoding that stops at a wanted length, whatever follows in the input.

Images without LZ4_0PADDING end their pclusters in padding (or in data past the extent), so
the end of the LZ4 block is not known, and liblz4's Python binding wants to know it. Slow,
but such images have not been made by default since 2019.
"""

from lazyfs.errors import ImageFormatError

_MIN_MATCH = 4


def decode_prefix(data: bytes, length: int) -> bytes:
    """The first ``length`` bytes of what the LZ4 block at the start of ``data`` holds.

    Raises:
        ImageFormatError: not that much LZ4 data.
    """
    out = bytearray()
    position = 0
    try:
        while True:  # each turn takes at least one byte of the input
            token = data[position]
            position += 1
            literals = token >> 4
            if literals == 15:
                extra, position = _length(data, position)
                literals += extra
            out += data[position : position + literals]
            if len(out) >= length:
                return bytes(out[:length])
            position += literals
            distance = data[position] | data[position + 1] << 8
            position += 2
            match = token & 15
            if match == 15:
                extra, position = _length(data, position)
                match += extra
            match = min(match + _MIN_MATCH, length - len(out))
            if not 0 < distance <= len(out):
                raise ImageFormatError(f"lz4: distance {distance} at {len(out)}")
            start = len(out) - distance
            pattern = out[start : start + match]
            while len(pattern) < match:  # doubles each time: the match overlaps itself
                pattern += pattern[: match - len(pattern)]
            out += pattern
            if len(out) >= length:
                return bytes(out)
    except IndexError:
        raise ImageFormatError(f"lz4: ends after {len(out)} of {length} bytes") from None


def _length(data: bytes, position: int) -> tuple[int, int]:
    total = 0
    while True:  # each turn takes a byte of the input
        byte = data[position]
        position += 1
        total += byte
        if byte != 255:
            return total, position

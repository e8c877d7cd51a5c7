"""Width and height of an encoded image from its header, in a few microseconds.

Sources: ITU-T T.81, annex B (JPEG); ISO/IEC 15948 (PNG); BITMAPINFOHEADER (BMP); RFC 9649 (WebP).
"""

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of JPEG's frame headers; the others in this range are tables."""
_START_OF_SCAN, _END = 0xDA, 0xD9
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_BMP_CORE_HEADER = 12
_VP8_START_CODE = b"\x9d\x01\x2a"


def stored_size(content: bytes) -> tuple[int, int] | None:
    """Return width and height in px, before EXIF rotation, of a JPEG, PNG, BMP or WebP; None if there is none."""
    if content[:2] == b"\xff\xd8":
        return _jpeg(content)
    if content[:8] == b"\x89PNG\r\n\x1a\n" and content[12:16] == b"IHDR":
        return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    if content[:2] == b"BM":
        return _bmp(content)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return _webp(content)
    return None


def _jpeg(content: bytes) -> tuple[int, int] | None:
    """Search for the frame header as libjpeg does, which skips bytes between segments."""
    position = 2
    try:
        while True:
            position = content.index(0xFF, position)
            while content[position] == 0xFF:
                position += 1
            marker, start = content[position], position + 1
            if marker in _FRAMES:
                height, width = content[start + 3 : start + 5], content[start + 5 : start + 7]
                return int.from_bytes(width, "big"), int.from_bytes(height, "big")
            if marker in (_START_OF_SCAN, _END):
                return None
            length = 0 if marker == 0 or marker in _WITHOUT_LENGTH else content[start] << 8 | content[start + 1]
            position = start + length
    except (ValueError, IndexError):
        return None


def _bmp(content: bytes) -> tuple[int, int]:
    if int.from_bytes(content[14:18], "little") == _BMP_CORE_HEADER:
        return int.from_bytes(content[18:20], "little"), int.from_bytes(content[20:22], "little")
    width, height = content[18:22], content[22:26]
    # Negative: rows from top to bottom.
    return int.from_bytes(width, "little", signed=True), abs(int.from_bytes(height, "little", signed=True))


def _webp(content: bytes) -> tuple[int, int] | None:
    kind = content[12:16]
    if kind == b"VP8X":
        return int.from_bytes(content[24:27], "little") + 1, int.from_bytes(content[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(content[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and content[23:26] == _VP8_START_CODE:
        return int.from_bytes(content[26:28], "little") & 0x3FFF, int.from_bytes(content[28:30], "little") & 0x3FFF
    return None

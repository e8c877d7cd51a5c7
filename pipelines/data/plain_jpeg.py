"""Recognition of JPEGs that are known to be decodable from their structure alone.

libjpeg accepts any baseline JPEG with valid markers, tables and frame whose only scan ends with the end marker; damage
within the scan causes wrong pixels, not an error. Other files (progressive, CMYK, unusual frames) must be decoded to
find out. Source: ITU-T T.81, annex B, and libjpeg's checks.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

_SOF_BASELINE, _SOF_EXTENDED, _DHT, _EOI, _SOS, _DQT, _DRI, _COM = 0xC0, 0xC1, 0xC4, 0xD9, 0xDA, 0xDB, 0xDD, 0xFE
_APP0, _APP2, _APP14, _APP15 = 0xE0, 0xE2, 0xEE, 0xEF
_START = b"\xff\xd8"
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_ACCEPTED_SEGMENTS = {_APP0: (b"JFIF\0", 14), _APP2: (b"ICC_PROFILE\0", 14), _APP14: (b"Adobe", 12)}
"""Prefixes and minimum lengths of application segments that do not affect the image's shape."""
_LARGEST_SIDE = 65_500
_MAX_BLOCKS = 10
"""Maximum number of blocks in one unit of an interleaved scan."""
_FACTORS = (1, 2, 4)
_FULL_SCAN = b"\x00\x3f\x00"
_LARGEST_DC_SYMBOL = 15
_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class PlainJpeg:
    """The frame header of a baseline JPEG.

    Attributes:
        mode: Pillow's mode, "L" or "RGB".
        width, height: px as stored.
        has_metadata: whether there are segments that may affect the image, such as its orientation.
    """

    mode: str
    width: int
    height: int
    has_metadata: bool


class _NotPlainError(Exception):
    """Not a plain baseline JPEG."""


def plain_jpeg(content: bytes) -> PlainJpeg | None:
    """Return the frame header of a JPEG that is known to be decodable; None for any other file."""
    if content[:2] != _START:
        return None
    try:
        return _read(content)
    except (_NotPlainError, IndexError):
        return None


def _read(content: bytes) -> PlainJpeg:
    position, tables, has_metadata = 2, set[int](), False
    frame = b""
    while True:
        _require(content[position] == 0xFF)
        marker = content[position + 1]
        start, position = position + 4, position + 2 + (content[position + 2] << 8 | content[position + 3])
        payload = content[start:position]
        # A length below 2 would move backwards; beyond the end there is no next marker.
        _require(position >= start)
        if marker in (_DQT, _DHT):
            tables |= _quantisers(payload) if marker == _DQT else _huffman_tables(payload)
        elif marker in (_SOF_BASELINE, _SOF_EXTENDED):
            _require(not frame)
            frame = payload
        elif marker == _SOS:
            break
        elif _APP0 <= marker <= _APP15:
            has_metadata |= not _is_harmless(marker, payload)
        else:
            _require(marker == _COM or (marker == _DRI and len(payload) == 2))
    end = _END_OF_SCAN.search(content, position)
    _require(end is not None and content[end.end() - 1] == _EOI)
    _require(_scan_needs(frame[:1] + frame[5:], payload) <= tables)
    width, height = frame[3] << 8 | frame[4], frame[1] << 8 | frame[2]
    _require(0 < width <= _LARGEST_SIDE and 0 < height <= _LARGEST_SIDE)
    return PlainJpeg(_MODES[frame[5]], width, height, has_metadata)


def _is_harmless(marker: int, payload: bytes) -> bool:
    prefix, least = _ACCEPTED_SEGMENTS.get(marker, (b"", 0))
    return bool(prefix) and payload.startswith(prefix) and len(payload) >= least


# The files of a data set have few different tables and frames. Tables are distinguished as 0x10 (quantiser), 0x20 (DC)
# and 0x30 (AC) plus their number, 0 ... 3.


@lru_cache(maxsize=1024)
def _quantisers(payload: bytes) -> frozenset[int]:
    """Return the 8-bit quantisation tables that a segment defines."""
    _require(bool(payload) and len(payload) % 65 == 0)
    numbers = payload[::65]
    _require(max(numbers) <= 3)
    return frozenset(0x10 + number for number in numbers)


@lru_cache(maxsize=1024)
def _huffman_tables(payload: bytes) -> frozenset[int]:
    """Return the Huffman tables that a segment defines."""
    found, position = set(), 0
    while position < len(payload):
        kind, number = divmod(payload[position], 16)
        counts = payload[position + 1 : position + 17]
        symbols = payload[position + 17 : position + 17 + sum(counts)]
        _require(kind <= 1 and number <= 3 and len(counts) == 16 and 0 < sum(counts) == len(symbols) <= 256)
        code = 0
        for bits, count in enumerate(counts, start=1):
            code += count
            _require(not count or code < 1 << bits)  # the code of only ones is not allowed
            code <<= 1
        _require(kind == 1 or max(symbols) <= _LARGEST_DC_SYMBOL)
        found.add(0x20 + 0x10 * kind + number)
        position += 17 + len(symbols)
    return frozenset(found)


@lru_cache(maxsize=1024)
def _scan_needs(frame: bytes, scan: bytes) -> frozenset[int]:
    """Return the tables that a scan of all components of a frame needs; `frame` is without its height and width."""
    bits, components = frame[0], frame[1]
    _require(bits == 8 and components in _MODES and len(frame) == 2 + 3 * components)
    _require(len(scan) == 4 + 2 * components and scan[0] == components and scan[-3:] == _FULL_SCAN)
    numbers, factors, quantisers = frame[2::3], frame[3::3], frame[4::3]
    _require(len(set(numbers)) == components and numbers == scan[1:-3:2])
    across, down = [factor >> 4 for factor in factors], [factor & 15 for factor in factors]
    _require(all(factor in _FACTORS for factor in (*across, *down)))
    blocks = sum(h * v for h, v in zip(across, down, strict=True))
    _require(components == 1 or blocks <= _MAX_BLOCKS)
    chosen = scan[2:-3:2]
    needed = {0x10 + n for n in quantisers} | {0x20 + (n >> 4) for n in chosen} | {0x30 + (n & 15) for n in chosen}
    # Numbers above 3 would be those of the next kind of table.
    _require(max(quantisers) <= 3 and all(n >> 4 <= 3 and n & 15 <= 3 for n in chosen))
    return frozenset(needed)


def _require(condition: bool) -> None:
    if not condition:
        raise _NotPlainError

"""Whether an image file is completely well-formed, so that strict decoders accept it.

Pillow tolerates damage such as noise between JPEG markers, a wrong PNG checksum or a broken EXIF block. DALI rejects
such files, which would end a training, or finds another EXIF rotation; they must be decoded by Pillow.
"""

import re
import struct
import zlib
from collections.abc import Callable

ORIENTATION_TAG = 0x0112
"""EXIF tag of the orientation."""
_SHORT = 3
_NO_PAYLOAD = frozenset({0x01, *range(0xD0, 0xD8)})
_SOI, _EOI, _SOS, _APP1 = 0xD8, 0xD9, 0xDA, 0xE1
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_WEBP_HAS_EXIF = 0x08
_EXIF_PREFIX = b"Exif\0\0"


class _NotIntactError(Exception):
    pass


def is_intact(content: bytes, kind: str, orientation: int) -> bool:
    """Return whether the container is well-formed and has the given EXIF orientation.

    Args:
        content: the file.
        kind: "jpeg", "cmyk-jpeg", "png" or "webp"; other containers are not checked.
        orientation: the orientation found by Pillow, 1 ... 8.
    """
    walk = _EXIF_READERS.get(kind)
    if walk is None:
        return True
    try:
        blocks = walk(content)
        found = [_exif_orientation(block) for block in blocks]
    except (_NotIntactError, struct.error, IndexError):
        return False
    return len(found) <= 1 and orientation == (found[0] if found else 1)


def _jpeg_exif_blocks(content: bytes) -> list[bytes]:
    """Walk all segments up to the end marker."""
    _require(content[:2] == bytes((0xFF, _SOI)))
    blocks: list[bytes] = []
    position = 2
    while True:
        _require(content[position] == 0xFF)
        while content[position + 1] == 0xFF:  # fill bytes are allowed in front of a marker
            position += 1
        marker = content[position + 1]
        position += 2
        if marker == _EOI:
            return blocks
        _require(marker >= 0xC0 and marker != _SOI)
        if marker in _NO_PAYLOAD:
            continue
        (length,) = struct.unpack_from(">H", content, position)
        payload = content[position + 2 : position + length]
        _require(length >= 2 and len(payload) == length - 2)
        if marker == _APP1 and payload.startswith(_EXIF_PREFIX):
            blocks.append(payload[len(_EXIF_PREFIX) :])
        position += length
        if marker == _SOS:
            end = _END_OF_SCAN.search(content, position)
            _require(end is not None)
            position = end.start() if end else position


def _png_exif_blocks(content: bytes) -> list[bytes]:
    """Walk all chunks and verify their checksums."""
    _require(content.startswith(_PNG_SIGNATURE))
    blocks: list[bytes] = []
    position = len(_PNG_SIGNATURE)
    while True:
        length, name = struct.unpack_from(">I4s", content, position)
        payload = content[position + 8 : position + 8 + length]
        (checksum,) = struct.unpack_from(">I", content, position + 8 + length)
        _require(zlib.crc32(payload, zlib.crc32(name)) == checksum)
        position += length + 12
        if name == b"eXIf":
            blocks.append(payload)
        if name == b"IEND":
            return blocks


def _webp_exif_blocks(content: bytes) -> list[bytes]:
    riff, size, webp = struct.unpack_from("<4sI4s", content)
    _require(riff == b"RIFF" and webp == b"WEBP" and size + 8 == len(content))
    blocks: list[bytes] = []
    announced, position = False, 12
    while position < len(content):
        name, length = struct.unpack_from("<4sI", content, position)
        payload = content[position + 8 : position + 8 + length]
        _require(len(payload) == length)
        if name == b"VP8X":
            announced = bool(payload[0] & _WEBP_HAS_EXIF)
        if name == b"EXIF":
            blocks.append(payload.removeprefix(_EXIF_PREFIX))
        position += 8 + length + length % 2
    _require(announced == bool(blocks))
    return blocks


def _exif_orientation(block: bytes) -> int:
    """Return the orientation in the first directory of an EXIF block, 1 if there is none."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        raise _NotIntactError
    (offset,) = struct.unpack_from(f"{order}I", block, 4)
    (entries,) = struct.unpack_from(f"{order}H", block, offset)
    found = []
    for entry in range(entries):
        tag, kind, amount, value = struct.unpack_from(f"{order}HHIH", block, offset + 2 + 12 * entry)
        if tag == ORIENTATION_TAG:
            _require(kind == _SHORT and amount == 1 and 1 <= value <= 8)
            found.append(value)
    _require(len(found) <= 1)
    return found[0] if found else 1


def _require(condition: bool) -> None:
    if not condition:
        raise _NotIntactError


_EXIF_READERS: dict[str, Callable[[bytes], list[bytes]]] = {
    "jpeg": _jpeg_exif_blocks,
    "cmyk-jpeg": _jpeg_exif_blocks,
    "png": _png_exif_blocks,
    "webp": _webp_exif_blocks,
}

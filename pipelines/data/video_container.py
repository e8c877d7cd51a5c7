"""What the container of a video file says about its length: MP4 and QuickTime, AVI, Matroska and WebM."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_MAX_BOXES = 1 << 17
_FIRST_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp"})
_RIFF_FORMS = frozenset({b"AVI ", b"AVIX"})
_UNKNOWN_RIFF_SIZES = frozenset({0, 0xFFFFFFFF})
"""Of files that were never finished, or are written to a pipe."""
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_MAX_EBML_HEADER = 1 << 12


def missing_bytes(path: Path) -> int:
    """Return how many bytes a video file lacks at its end; 0 if it is complete, or its container does not tell.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(12)
        if head[4:8] in _FIRST_BOXES:
            end = _end_of_boxes(file, size)
        elif head[:4] == b"RIFF":
            end = _end_of_riff(file, size)
        elif head[:4] == _EBML:
            end = _end_of_matroska(file, size)
        else:
            return 0
    return max(0, end - size)


def stated_seconds(path: Path) -> float:
    """Return the duration of an MP4 or QuickTime file; 0 if it is unknown, and for other containers.

    Unlike the number of frames, it is without those that a trimmed video still has, but does not show.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(8)[4:] not in _FIRST_BOXES:
            return 0.0
        for kind, start, end in _boxes(file, 0, size):
            if kind != b"moov":
                continue
            for inner, place, _ in _boxes(file, start, min(end, size)):
                if inner == b"mvhd":
                    file.seek(place)
                    return _movie_seconds(file.read(32))
    return 0.0


def _movie_seconds(header: bytes) -> float:
    """Return the duration in a movie header."""
    layout, unknown = (">12xII", 2**32 - 1) if header[:1] == b"\0" else (">20xIQ", 2**64 - 1)
    if len(header) < struct.calcsize(layout):
        return 0.0
    timescale, duration = struct.unpack_from(layout, header)
    return duration / timescale if timescale and duration != unknown else 0.0


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    """Return the end of the last box of an MP4 or QuickTime file; bytes after it that are no box are ignored."""
    return max((end for _, _, end in _boxes(file, 0, size)), default=0)


def _boxes(file: BinaryIO, position: int, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start of the content and end of the boxes of an MP4 or QuickTime file from a position on."""
    for _ in range(_MAX_BOXES):
        if position + 8 > size:
            return
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8))
        content = position + 8
        if length == 1:
            wide = file.read(8)
            length = struct.unpack(">Q", wide)[0] if len(wide) == 8 else 0
            content += 8
        elif length == 0:  # to the end of the file
            length = size - position
        if length < 8 or not kind.isalnum():
            return
        yield kind, content, position + length
        position += length


def _end_of_riff(file: BinaryIO, size: int) -> int:
    """Return the end of the last RIFF chunk of an AVI file; files above 1 GB have several."""
    position = end = 0
    for _ in range(_MAX_BOXES):
        file.seek(position)
        header = file.read(12)
        if len(header) < 12 or header[:4] != b"RIFF" or header[8:] not in _RIFF_FORMS:
            return end
        (length,) = struct.unpack_from("<I", header, 4)
        if length in _UNKNOWN_RIFF_SIZES:
            return size
        end = position + 8 + length
        position = end + length % 2
    return size


def _end_of_matroska(file: BinaryIO, size: int) -> int:
    """Return the end of the segment of a Matroska or WebM file."""
    file.seek(0)
    head = file.read(_MAX_EBML_HEADER)
    place = head.find(_SEGMENT)
    length = _ebml_size(head[place + len(_SEGMENT) :]) if place >= 0 else None
    return size if length is None else place + len(_SEGMENT) + length[1] + length[0]


def _ebml_size(data: bytes) -> tuple[int, int] | None:
    """Return a size and the number of its own bytes; None if it is unknown, as in a recorded stream."""
    width = 9 - data[0].bit_length() if data and data[0] else 0
    if not width or len(data) < width:
        return None
    value = int.from_bytes(data[:width], "big") & ((1 << 7 * width) - 1)
    return None if value == (1 << 7 * width) - 1 else (value, width)

"""Writes TensorBoard event files: scalars and PNG images, without TensorBoard or TensorFlow being installed.

Format: a TFRecord file (length, masked CRC-32C of the length, data, masked CRC-32C of the data) of `tensorflow.Event`
messages in protobuf's wire format. Only the handful of fields that are needed is encoded here.
"""

import os
import socket
import struct
import time
from pathlib import Path
from typing import BinaryIO

_POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Field numbers of the message types in TensorFlow's event.proto and summary.proto.
_EVENT_WALL_TIME, _EVENT_STEP, _EVENT_FILE_VERSION, _EVENT_SUMMARY, _EVENT_SESSION_LOG = 1, 2, 3, 5, 7
_SUMMARY_VALUE = 1
_VALUE_TAG, _VALUE_SIMPLE, _VALUE_IMAGE = 1, 2, 4
_IMAGE_HEIGHT, _IMAGE_WIDTH, _IMAGE_COLORSPACE, _IMAGE_ENCODED = 1, 2, 3, 4
_SESSION_STATUS, _SESSION_START = 1, 1
_RGB = 3


def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)  # noqa: PLW2901 - shifted in place
        table.append(value)
    return tuple(table)


_CRC_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720) of some bytes."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _tag(field: int, kind: int) -> bytes:
    return _varint(field << 3 | kind)


def _integer(field: int, value: int) -> bytes:
    return _tag(field, _VARINT) + _varint(value)


def _block(field: int, data: bytes) -> bytes:
    return _tag(field, _BYTES) + _varint(len(data)) + data


class EventFile:
    """One event file of a run, opened at once; every call is a record that a reader sees after `flush`.

    Args:
        folder: where TensorBoard looks (`--logdir` or below).
        first_step: of a resumed run; points of earlier files from this step on are then dropped by the reader. None
            in a new run.
    """

    def __init__(self, folder: Path, first_step: int | None = None) -> None:
        now = time.time()
        name = f"events.out.tfevents.{int(now)}.{socket.gethostname()}.{os.getpid()}"
        self._file = _new_file(folder, name)
        self._write(_block(_EVENT_FILE_VERSION, b"brain.Event:2"), 0)
        if first_step is not None:
            self._write(_block(_EVENT_SESSION_LOG, _integer(_SESSION_STATUS, _SESSION_START)), first_step)
        self.flush()

    def scalar(self, tag: str, value: float, step: int) -> None:
        """One point of a curve; stored as float32."""
        number = _tag(_VALUE_SIMPLE, _FIXED32) + struct.pack("<f", value)
        self._summary(tag, number, step)

    def png(self, tag: str, data: bytes, step: int) -> None:
        """An image, already encoded as PNG.

        Raises:
            ValueError: the bytes are no PNG.
        """
        if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 24:
            raise ValueError(f"image {tag!r}: not a PNG; TensorBoard is given PNG files only")
        width, height = struct.unpack(">II", data[16:24])
        image = (
            _integer(_IMAGE_HEIGHT, height)
            + _integer(_IMAGE_WIDTH, width)
            + _integer(_IMAGE_COLORSPACE, _RGB)
            + _block(_IMAGE_ENCODED, data)
        )
        self._summary(tag, _block(_VALUE_IMAGE, image), step)

    def flush(self) -> None:
        """Brings everything to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flushes and closes the file; a second call does nothing."""
        self._file.close()

    def _summary(self, tag: str, content: bytes, step: int) -> None:
        value = _block(_SUMMARY_VALUE, _block(_VALUE_TAG, tag.encode()) + content)
        self._write(_block(_EVENT_SUMMARY, value), step)

    def _write(self, content: bytes, step: int) -> None:
        clock = _tag(_EVENT_WALL_TIME, _FIXED64) + struct.pack("<d", time.time())
        event = clock + _integer(_EVENT_STEP, step) + content
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked(length) + event + _masked(event))


def _new_file(folder: Path, name: str) -> BinaryIO:
    for number in range(1000):
        try:
            return (folder / f"{name}.{number}").open("xb")
        except FileExistsError:
            continue
    raise FileExistsError(f"{folder}: 1000 event files of this second; remove old ones")

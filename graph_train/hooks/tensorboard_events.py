"""TensorBoard event files: scalars and PNG images, written by tensorboardX.

Records are written when they are given. tensorboardX's `SummaryWriter` leaves that to a thread, which ends when the
disk is full; the next call then never returns.
"""

import itertools
import os
import struct
import time
from pathlib import Path
from typing import Any

_RGB = 3
_FILES = itertools.count()


class EventFile:
    """One event file of a run, opened at once; every call is a record that a reader sees after `flush`.

    Args:
        folder: where TensorBoard looks (`--logdir` or below).
        first_step: of a resumed run; points of earlier files from this step on are then dropped by the reader. None
            in a new run.
    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, folder: Path, first_step: int | None = None) -> None:
        # Imported where it is needed; most commands write none.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        self._event, self._summary = Event, Summary
        # Its own names tell files of one second and host apart by nothing.
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}.{next(_FILES)}")
        self._closed = False
        if first_step is not None:
            self._write(first_step, session_log=SessionLog(status=SessionLog.START))
        self.flush()

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Write one point of a curve; stored as float32."""
        self._write_value(step, tag=tag, simple_value=value)

    def png(self, tag: str, data: bytes, step: int) -> None:
        """Write an image, already encoded as PNG.

        Raises:
            ValueError: the bytes are no PNG.
        """
        if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 24:
            raise ValueError(f"image {tag!r}: not a PNG; TensorBoard is given PNG files only")
        width, height = struct.unpack(">II", data[16:24])
        image = self._summary.Image(height=height, width=width, colorspace=_RGB, encoded_image_string=data)
        self._write_value(step, tag=tag, image=image)

    def flush(self) -> None:
        """Bring everything to the disk."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the file; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._writer.close()

    def _write_value(self, step: int, **value: Any) -> None:
        self._write(step, summary=self._summary(value=[self._summary.Value(**value)]))

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._event(wall_time=time.time(), step=step, **content))

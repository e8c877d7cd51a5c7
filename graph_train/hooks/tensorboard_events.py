"""TensorBoard event files with scalars and PNG images, written by tensorboardX.

Records are written synchronously: tensorboardX's `SummaryWriter` uses a thread that ends when the disk is full, and
then the next call never returns.
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
    """An event file of a run; records are visible to readers after `flush`.

    Args:
        folder: folder of the file (`--logdir` or a subfolder).
        first_step: first step of a resumed run; readers drop values of earlier files from this step on. None for a new
            run.
    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, folder: Path, first_step: int | None = None) -> None:
        # Imported here, because most commands do not need it.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        self._event, self._summary = Event, Summary
        # tensorboardX's names of files created in the same second on the same host would collide.
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}.{next(_FILES)}")
        self._closed = False
        if first_step is not None:
            self._write(first_step, session_log=SessionLog(status=SessionLog.START))
        self.flush()

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Write a scalar; stored as float32."""
        self._write_value(step, tag=tag, simple_value=value)

    def png(self, tag: str, data: bytes, step: int) -> None:
        """Write an image encoded as PNG.

        Raises:
            ValueError: the data is not a PNG.
        """
        if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 24:
            raise ValueError(f"image {tag!r}: not a PNG")
        width, height = struct.unpack(">II", data[16:24])
        image = self._summary.Image(height=height, width=width, colorspace=_RGB, encoded_image_string=data)
        self._write_value(step, tag=tag, image=image)

    def flush(self) -> None:
        """Flush to the disk."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the file; further calls do nothing."""
        if not self._closed:
            self._closed = True
            self._writer.close()

    def _write_value(self, step: int, **value: Any) -> None:
        self._write(step, summary=self._summary(value=[self._summary.Value(**value)]))

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._event(wall_time=time.time(), step=step, **content))

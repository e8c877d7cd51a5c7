"""Reading and writing of video files with OpenCV (an extra)."""

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kernels.host.extras import install_command
from kernels.host.paths import printable

VIDEO_SUFFIXES = frozenset(
    {".asf", ".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}
)
"""Suffixes of YOLOv5's video formats, and WebM."""
_CODEC = "mp4v"
_USUAL_RATE = 30.0
"""Frames per second if the file does not specify it."""


def require_opencv(path: Path | str) -> None:
    """Reject a video if OpenCV is not installed.

    Raises:
        ValueError: OpenCV is not installed.
    """
    if importlib.util.find_spec("cv2") is None:
        raise ValueError(f"{printable(path)}: videos need OpenCV: {install_command('video')}")


def frame_rate(capture: Any) -> float:
    """Return the frames per second of an open `cv2.VideoCapture`."""
    import cv2

    rate = float(capture.get(cv2.CAP_PROP_FPS))
    return rate if 0 < rate < 1000 else _USUAL_RATE


def frame_count(capture: Any) -> int:
    """Return the number of frames of an open `cv2.VideoCapture`; 0 if it is unknown."""
    import cv2

    return max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)


class Video:
    """A video file opened for reading.

    Attributes:
        size: width and height in px, upright.
        rate: frames per second.
        frames: number of frames according to the file; 0 if unknown.
    """

    def __init__(self, path: Path) -> None:
        """Open the file and read its size and rate.

        Raises:
            ValueError: OpenCV is not installed.
            OSError: the file cannot be decoded.
        """
        require_opencv(path)
        import cv2

        self._capture: Any = cv2.VideoCapture(str(path))
        first: Any
        decoded, first = self._capture.read() if self._capture.isOpened() else (False, None)
        if not decoded:
            self._capture.release()
            raise OSError(f"{printable(path)}: cannot be decoded as a video")
        self._first: Any = first
        self.size = (int(first.shape[1]), int(first.shape[0]))
        self.rate = frame_rate(self._capture)
        self.frames = frame_count(self._capture)

    def read(self, every: int = 1) -> Iterator[np.ndarray]:
        """Yield every n-th frame, (h, w, 3) uint8 RGB; can be iterated only once."""
        number, frame = 0, self._first
        while True:
            if number % every == 0:
                yield np.ascontiguousarray(frame[..., ::-1])
            number += 1
            # Skipped frames are not converted.
            if not self._capture.grab():
                return
            if number % every == 0:
                decoded, frame = self._capture.retrieve()
                if not decoded:
                    return

    def close(self) -> None:
        """Close the file."""
        self._capture.release()


class VideoFile:
    """An MP4 file opened for writing."""

    def __init__(self, path: Path, size: tuple[int, int], rate: float) -> None:
        """Create the file.

        Raises:
            OSError: it cannot be written.
        """
        import cv2

        self._path, self._frames = path, 0
        self._writer: Any = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*_CODEC), rate, size)
        if not self._writer.isOpened():
            raise OSError(f"{printable(path)}: cannot be written as a video")

    def add(self, frame: np.ndarray) -> None:
        """Append a frame, (h, w, 3) uint8 RGB."""
        self._writer.write(np.ascontiguousarray(frame[..., ::-1]))
        self._frames += 1

    def close(self) -> None:
        """Finish the file.

        Raises:
            OSError: it is incomplete, for instance because the disk is full, which OpenCV does not report.
        """
        if not self._writer.isOpened():
            return
        self._writer.release()
        written = _frames_in(self._path)
        if written < self._frames:
            free = shutil.disk_usage(self._path.parent).free
            raise OSError(
                f"{printable(self._path)}: the video is incomplete ({written} of {self._frames} frames); is the disk "
                f"full ({free / 1e6:,.0f} MB free)?"
            )


def _frames_in(path: Path) -> int:
    """Return the number of frames of a finished video file; 0 if it cannot be opened."""
    import cv2

    capture = cv2.VideoCapture(str(path))
    try:
        return frame_count(capture) if capture.isOpened() else 0
    finally:
        capture.release()

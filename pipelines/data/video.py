"""Reading and writing of video files with OpenCV (an extra)."""

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kernels.host.extras import install_command
from kernels.host.paths import is_utf8, printable
from pipelines.data.video_container import missing_bytes, stated_seconds

VIDEO_SUFFIXES = frozenset(
    {".asf", ".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}
)
"""Suffixes of YOLOv5's video formats, and WebM."""
_CODEC = "mp4v"
_USUAL_RATE = 30.0
"""Frames per second if the file does not specify it."""
_TOLERATED_SHARE, _TOLERATED_SECONDS = 0.1, 1.0
"""Part of the frames or of the duration stated by a file that may be missing at its end, because it is an estimate."""


def require_opencv(path: Path | str) -> None:
    """Reject a video if OpenCV is not installed.

    Raises:
        ValueError: OpenCV is not installed.
    """
    if importlib.util.find_spec("cv2") is None:
        raise ValueError(f"{printable(path)}: videos need OpenCV: {install_command('video')}")


def quiet_opencv() -> Any:
    """Return OpenCV without log messages, of which FFmpeg prints thousands for a damaged file."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read when FFmpeg opens its first file
    import cv2

    cv2.setLogLevel(0)
    return cv2


def frame_rate(capture: Any) -> float:
    """Return the frames per second of an open `cv2.VideoCapture`."""
    import cv2

    rate = float(capture.get(cv2.CAP_PROP_FPS))
    return rate if 0 < rate < 1000 else _USUAL_RATE


def frame_count(capture: Any) -> int:
    """Return the number of frames of an open `cv2.VideoCapture`; 0 if it is unknown."""
    import cv2

    return max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)


def _file_name(path: Path) -> str:
    """Return the path for FFmpeg, which takes the part before a colon (`10:30.mp4`) for a protocol.

    Raises:
        OSError: it is not valid UTF-8, with which OpenCV crashes.
    """
    name = os.path.join(".", path)
    if not is_utf8(name):
        raise OSError(f"{printable(path)}: the path is not valid UTF-8, which OpenCV cannot open; rename it")
    return name


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
        self._path = path
        cv2 = quiet_opencv()
        self._capture: Any = cv2.VideoCapture(_file_name(path))
        first: Any
        decoded, first = self._capture.read() if self._capture.isOpened() else (False, None)
        if not decoded:
            self._capture.release()
            raise OSError(f"{printable(path)}: cannot be decoded as a video")
        self._first: Any = first
        self.size = (int(first.shape[1]), int(first.shape[0]))
        self.rate = frame_rate(self._capture)
        self.frames = frame_count(self._capture)
        self._read, self._milliseconds = 0, 0.0

    def read(self, every: int = 1) -> Iterator[np.ndarray]:
        """Yield every n-th frame, (h, w, 3) uint8 RGB; can be iterated only once."""
        import cv2

        number, frame = 0, self._first
        while True:
            self._read, self._milliseconds = number + 1, self._capture.get(cv2.CAP_PROP_POS_MSEC)
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

    @property
    def incomplete_reason(self) -> str:
        """Why fewer frames could be read than the file should have; "" if all were read, or their number is unknown.

        A file that is shorter than its container says is incomplete. In other files the number is an estimate if the
        frame rate varies, so the time of the last frame counts, too.
        """
        if self._read >= self.frames:
            return ""
        missing, stated = 0, self.frames / self.rate
        with contextlib.suppress(OSError):  # deleted in the meantime
            missing, stated = missing_bytes(self._path), stated_seconds(self._path) or stated
        seconds = self._milliseconds / 1000 + 1 / self.rate
        few = self._read < (1 - _TOLERATED_SHARE) * self.frames
        early = self._milliseconds <= 0 or seconds < (1 - _TOLERATED_SHARE) * stated - _TOLERATED_SECONDS
        if not (missing or (few and early)):
            return ""
        return f"ends after frame {self._read} of {self.frames}, the file is incomplete or damaged; copy it again"

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
        cv2 = quiet_opencv()
        self._path, self._frames = path, 0
        self._writer: Any = cv2.VideoWriter(_file_name(path), cv2.VideoWriter.fourcc(*_CODEC), rate, size)
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
    capture = quiet_opencv().VideoCapture(_file_name(path))
    try:
        return frame_count(capture) if capture.isOpened() else 0
    finally:
        capture.release()

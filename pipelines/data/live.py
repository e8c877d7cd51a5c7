"""Cameras and streams, read with OpenCV (an extra); only the newest frame is kept."""

import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kernels.host.paths import is_utf8, printable
from pipelines.data.video import frame_count, frame_rate, quiet_opencv, require_opencv

STREAM_PORTS = {"http": 80, "https": 443, "rtmp": 1935, "rtmps": 443, "rtsp": 554, "rtsps": 322}
"""URL schemes supported by FFmpeg, with their default ports."""
TIMEOUT_SECONDS = 10.0
"""Time limit for opening a stream, and for its next frame."""
_HTTP_SCHEMES = ("http://", "https://")
"""Schemes whose servers send as fast as the client reads."""
_TICK_SECONDS = 0.2
"""Interval at which a waiting reader checks for a stop request."""


def shown_address(address: str) -> str:
    """Return the URL made printable, without user name and password."""
    head, separator, rest = address.partition("://")
    place, slash, path = rest.partition("/")
    return printable(f"{head}{separator}{place.rpartition('@')[2]}{slash}{path}")


class LiveVideo:
    """An open camera or stream.

    A background thread reads it and keeps only the newest frame, so that a slow consumer skips frames instead of
    lagging behind. Of a recording (a playlist with an end), which is sent as fast as it is read, no frame is skipped.

    Attributes:
        size: width and height in px.
        rate: frames per second, as reported.
        ended: the reason why the stream has ended; "" while it is running.
        failed: whether it ended because no frame arrived for `TIMEOUT_SECONDS`, the camera failed, or the server is
            gone.
    """

    def __init__(self, address: str) -> None:
        """Open the camera or stream, and read its first frame.

        Args:
            address: the number of a camera, or a URL with one of `STREAM_PORTS`.
        Raises:
            ValueError: OpenCV is not installed, or the address is invalid.
            OSError: there is no such camera, no answer, or no video.
        """
        self._address, self._name = address, shown_address(address)
        require_opencv(address if address.isdecimal() else self._name)
        self._capture = _camera(int(address)) if address.isdecimal() else _stream(address, self._name)
        success, first = self._capture.read()
        if not success:
            self._capture.release()
            raise OSError(f"{self._name}: opened, but no frame was received")
        self.size = (int(first.shape[1]), int(first.shape[0]))
        self.rate = frame_rate(self._capture)
        self.ended, self.failed = "", False
        self._is_recording = address.lower().startswith(_HTTP_SCHEMES) and frame_count(self._capture) > 0
        self._number, self._next_number, self._newest = 1, 1, first
        self._frame_changed, self._closing = threading.Condition(), False
        self._thread = threading.Thread(target=self._read, name="graph-train-live", daemon=True)
        self._thread.start()

    def frames(self, every: int = 1, stopped: Callable[[], Any] = bool) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the newest frame repeatedly, (h, w, 3) uint8 RGB, with its number in the stream, from 1.

        Args:
            every: minimum distance between yielded frames.
            stopped: polled while waiting; a true result ends the frames.
        """
        while not stopped():
            with self._frame_changed:
                self._frame_changed.wait_for(lambda: self._number >= self._next_number or self.ended, _TICK_SECONDS)
                number, frame = self._number, self._newest
                is_new, ended = number >= self._next_number, bool(self.ended)
                if is_new:
                    self._next_number = number + every
                    self._frame_changed.notify_all()
            if is_new:
                yield number, np.ascontiguousarray(frame[..., ::-1])
            elif ended:
                return

    def _read(self) -> None:
        while not self._closing:
            with self._frame_changed:
                if self._is_recording and self._number >= self._next_number:
                    self._frame_changed.wait(_TICK_SECONDS)
                    continue
            started = time.monotonic()
            success, frame = self._capture.read()
            if not success:
                stalled = time.monotonic() - started > TIMEOUT_SECONDS / 2
                reason = f"sent no frame for {TIMEOUT_SECONDS:.0f} s" if stalled else self._failure()
                self.failed = bool(reason)
                reason = reason or "ended"
            elif (frame.shape[1], frame.shape[0]) != self.size:
                success, reason = False, f"changed its size from {self.size[0]}x{self.size[1]} px; start again"
            with self._frame_changed:
                if success:
                    self._number, self._newest = self._number + 1, frame
                else:
                    self.ended = f"{reason} after frame {self._number}"
                self._frame_changed.notify_all()
            if not success:
                return

    def _failure(self) -> str:
        """Return why there is no next frame; "" if the stream has ended, which means that its server still answers."""
        if self._address.isdecimal():
            return "the camera failed or was disconnected"
        time.sleep(_TICK_SECONDS)  # a killed server may close the connection before its port
        try:
            _require_answer(self._address, self._name)
        except OSError as error:
            return f"connection lost, the server does not answer ({str(error).removeprefix(f'{self._name}: ')})"
        return ""

    def close(self) -> None:
        """Close the camera or connection."""
        self._closing = True
        self._thread.join(TIMEOUT_SECONDS + 1)
        if not self._thread.is_alive():  # closing while the driver hangs would block
            self._capture.release()


def _camera(number: int) -> Any:
    device = Path(f"/dev/video{number}")
    if not device.exists():
        available = ", ".join(sorted(path.name.removeprefix("video") for path in Path("/dev").glob("video*")))
        raise OSError(f"camera {number}: there is no {device}; available cameras: {available or 'none'}")
    cv2 = quiet_opencv()
    capture = cv2.VideoCapture(number, cv2.CAP_V4L2)
    if not capture.isOpened():
        raise OSError(f"camera {number}: cannot be opened; it may be in use, or {device} not readable")
    return capture


def _stream(address: str, name: str) -> Any:
    _require_answer(address, name)
    cv2 = quiet_opencv()
    milliseconds = int(TIMEOUT_SECONDS * 1000)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds, cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds]
    capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, limits)
    if not capture.isOpened():
        raise OSError(f"{name}: connected, but no video was received; check the path and whether a password is needed")
    return capture


def _require_answer(address: str, name: str) -> None:
    """Connect once to get an error message, which FFmpeg does not give.

    Raises:
        ValueError: the URL is invalid.
        OSError: the connection failed.
    """
    try:
        parts = urllib.parse.urlsplit(address)
        host, port = parts.hostname, parts.port or STREAM_PORTS[parts.scheme.lower()]
    except ValueError as error:
        raise ValueError(f"{name}: invalid URL: {error}") from None
    if not host:
        raise ValueError(f"{name}: URL without a host")
    if not is_utf8(address):
        raise ValueError(f"{name}: not valid UTF-8, which OpenCV cannot open; percent-encode it")
    try:
        socket.create_connection((host, port), TIMEOUT_SECONDS).close()
    except (socket.gaierror, UnicodeError):
        raise OSError(f"{name}: no such host: {printable(host)}") from None
    except TimeoutError:
        raise OSError(f"{name}: no answer from port {port} within {TIMEOUT_SECONDS:.0f} s") from None
    except OSError as error:
        raise OSError(f"{name}: {error.strerror or error} (port {port})") from None

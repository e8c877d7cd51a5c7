"""Terminal output that tolerates any text, progress bars, a closed terminal and a full disk."""

import contextlib
import errno
import io
import logging
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from kernels.host.paths import printable

BAR_FORMAT = "{l_bar}{bar:10}{r_bar}{bar:-10b}"
"""Format of all progress bars."""
_CLOSED_ERRORS = {errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ESTALE}
"""Errors of a stream that is gone for good; others, such as a full disk, may be temporary."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_MAX_WORD = 400
_LONG_WORD = re.compile(rf"(\S{{{_MAX_WORD // 2}}})\S{{{_MAX_WORD // 2},}}(\S{{{_MAX_WORD // 4}}})")


def as_line(text: str) -> str:
    """Return a message as one line without colours; control characters are escaped, very long words shortened."""
    return _LONG_WORD.sub(r"\1…\2", printable(" ".join(_COLOURS.sub("", text).split())))


class RobustStream:
    """A text stream that never fails: unencodable characters are escaped, and output to a closed stream is dropped."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write if possible, and return the length of the text in any case."""
        if self._is_closed:
            return len(text)
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:
                self._stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        except OSError as error:
            self._silence_if_closed(error)
        return len(text)

    def flush(self) -> None:
        """Flush if possible."""
        try:
            self._flush()
        except OSError as error:
            self._silence_if_closed(error)

    def finish(self) -> None:
        """Flush; drop text that cannot be written, because the interpreter would otherwise exit with code 120."""
        try:
            self._flush()
        except OSError as error:
            self._silence_if_closed(error)
            with contextlib.suppress(OSError, ValueError), _to_devnull(self._stream.fileno()):
                self._stream.flush()

    @property
    def _is_closed(self) -> bool:
        """Whether the program has closed the stream."""
        return bool(getattr(self._stream, "closed", False))

    def _flush(self) -> None:
        # A program may have replaced the stream by an object that has only `write`.
        if hasattr(self._stream, "flush") and not self._is_closed:
            self._stream.flush()

    def _silence_if_closed(self, error: OSError) -> None:
        if error.errno not in _CLOSED_ERRORS:
            return
        # Also covers direct writes to the descriptor, by native libraries and by the interpreter at its exit.
        with contextlib.suppress(OSError, ValueError):
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, self._stream.fileno())
            os.close(devnull)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _to_devnull(descriptor: int) -> Iterator[None]:
    """Redirect a file descriptor to /dev/null temporarily."""
    saved, devnull = os.dup(descriptor), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, descriptor)
        yield
    finally:
        os.dup2(saved, descriptor)
        os.close(saved)
        os.close(devnull)


def open_closed_descriptors() -> None:
    """Redirect closed standard file descriptors to /dev/null.

    A file opened later would otherwise get their number, and native libraries would write messages into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


class DiscardedOutput(io.TextIOBase):
    """A text stream that discards its output, in place of one that was closed before the program started."""

    def write(self, text: str) -> int:
        """Drop the text; return its length."""
        return len(text)


@contextlib.contextmanager
def robust_output() -> Iterator[None]:
    """Replace stdout and stderr by `RobustStream`s; nested uses have no effect."""
    open_closed_descriptors()
    before = sys.stdout, sys.stderr
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, RobustStream):
            setattr(sys, name, RobustStream(DiscardedOutput() if stream is None else stream))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, RobustStream):
                stream.finish()
        sys.stdout, sys.stderr = before


class TerminalHandler(logging.StreamHandler):
    """A logging handler that prints messages above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Clear the progress bar, print the record, and restore the bar."""
        from tqdm import tqdm

        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


class LogFile(logging.FileHandler):
    """A log file that drops messages while its disk is full instead of failing."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base class's name
        """Ignore a failed write; report other errors, which are bugs."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        """Close the file; ignore a failed flush."""
        with contextlib.suppress(OSError):
            super().close()

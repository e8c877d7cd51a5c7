"""The terminal: bars and messages share it, and its going away, as a full disk behind it, must not end a run."""

import contextlib
import errno
import io
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

BAR_FORMAT = "{l_bar}{bar:10}{r_bar}{bar:-10b}"
"""How all bars look."""
_GONE = {errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ESTALE}
"""Nobody will read this stream again; anything else, such as a full disk, may pass."""


class SteadyStream:
    """A text stream whose writing never fails: what its encoding lacks is escaped; once its reader has gone it leads
    nowhere."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write if possible; return the length of the text in any case."""
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:
                self._stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        except OSError as error:
            self._lost(error)
        return len(text)

    def flush(self) -> None:
        """Flush if possible."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lost(error)

    def finish(self) -> None:
        """Flush; drop text that cannot be written, at which the interpreter would fail when it ends (exit code 120)."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lost(error)
            with contextlib.suppress(OSError, ValueError), _to_nowhere(self._stream.fileno()):
                self._stream.flush()

    def _lost(self, error: OSError) -> None:
        if error.errno not in _GONE:
            return
        # Also for what writes to the descriptor itself: native libraries, and the interpreter when it ends.
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _to_nowhere(descriptor: int) -> Iterator[None]:
    """Let a descriptor lead to /dev/null for a moment."""
    kept, nowhere = os.dup(descriptor), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, descriptor)
        yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)
        os.close(nowhere)


def open_closed_descriptors() -> None:
    """Let standard descriptors that the program was started without lead to /dev/null.

    A file that is opened next would get the number of such a one, and what a native library says on stderr would be
    written into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


class Nowhere(io.TextIOBase):
    """A text stream that drops what is written, in place of one that was closed before the program started."""

    def write(self, text: str) -> int:
        """Drop the text; return its length."""
        return len(text)


@contextlib.contextmanager
def steady_output() -> Iterator[None]:
    """Make stdout and stderr steady for a while; a nested use changes nothing."""
    open_closed_descriptors()
    before = sys.stdout, sys.stderr
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, SteadyStream):
            setattr(sys, name, SteadyStream(Nowhere() if stream is None else stream))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, SteadyStream):
                stream.finish()
        sys.stdout, sys.stderr = before


class TerminalHandler(logging.StreamHandler):
    """A handler that prints messages above a progress bar, never into it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record with the progress bar cleared for the moment."""
        from tqdm import tqdm

        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


class LogFile(logging.FileHandler):
    """A log whose messages are lost, rather than the run, while its disk is full."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base class's name
        """Ignore a failed write where the disk is full; show anything else, which is a defect."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        """Close the file, whatever of it is on the disk."""
        with contextlib.suppress(OSError):
            super().close()

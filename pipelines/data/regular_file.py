"""Reads files whose names somebody else chose: a pipe or device of that name could block for ever or never end."""

import os
import stat
from pathlib import Path


class NotReadableError(ValueError):
    """Not a regular file, or too large; the text says which."""


def read_regular(path: Path | str, *, max_bytes: int) -> bytes:
    """The content of a regular file.

    Raises:
        NotReadableError: a folder, pipe or device, or a file of more than `max_bytes`.
        OSError: it cannot be opened or read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotReadableError("not a regular file")
        if status.st_size > max_bytes:
            raise NotReadableError(f"{status.st_size} bytes; at most {max_bytes} are read")
        content = os.read(descriptor, status.st_size + 1)
        # Some file systems tell no size, or give less than was asked for; a file may also grow meanwhile.
        if len(content) != status.st_size or not content:
            with open(descriptor, "rb", closefd=False) as file:
                content += file.read()
        return content
    finally:
        os.close(descriptor)


def broken_link(file: Path) -> Path | None:
    """Of a file that is not there: the link to nothing that takes its place or that of a folder above it, if any."""
    for path in (file, *file.parents):
        if os.path.islink(path):
            return path
        if os.path.lexists(path):
            return None
    return None

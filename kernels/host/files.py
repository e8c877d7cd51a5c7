"""Atomic writing of files (temporary name, fsync, rename, fsync of the folder), and reading of regular files only."""

import errno
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MARK = ".tmp"
_TEMPORARY = re.compile(rf"\..+\.[0-9a-f]{{8}}{re.escape(_MARK)}(\..*)?")
_MAX_STEM_LENGTH = 40
"""Maximum length of the user's name within a temporary name: file names are limited to 255 bytes, 4 per character."""
_MAX_LINKS = 40
"""Limit on symbolic links in a path, as in the Linux kernel."""


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace a file atomically: readers and crashes see either the old or the new content.

    Raises:
        OSError: the folder cannot be written or the disk is full; the old file is unchanged.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path, *, keep: int = 0, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary file with the same suffix that replaces `path` if the block succeeds.

    If `path` is a pipe or device, the content is written into it.

    Args:
        path: target in an existing folder.
        keep: number of generations to keep: `path`, `older(path, 1)`, … `older(path, keep - 1)`; 0 disables generations
            and leaves similarly named files alone.
        durable: False skips the sync of the folder; after a power failure the name may refer to the older file or none.
    Raises:
        OSError: from writing, with the name `path`; older files are unchanged.
    """
    try:
        if is_stream(path):
            with _staged_file(path) as temporary:
                yield temporary
            return
        temporary = path.with_name(f".{path.stem[:_MAX_STEM_LENGTH]}.{secrets.token_hex(4)}{_MARK}{path.suffix}")
        temporary.touch(exist_ok=False)  # with the user's default permissions
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            _rotate(path, keep)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        # Names of temporary files mean nothing to the user.
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def is_stream(path: Path) -> bool:
    """Return whether a path must be written in place: a pipe, a device, or an open file such as /dev/stdout."""
    place = _open_file(path)
    if place is not None:
        return True
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def resolve_links(path: Path) -> Path:
    """Resolve symbolic links of a user's path, except for streams."""
    return path if is_stream(path) else Path(os.path.realpath(path))


def _open_file(path: Path) -> Path | None:
    """Return the /proc link of an open file if `path` is or leads to one."""
    for _ in range(_MAX_LINKS):
        if not os.path.islink(path):
            return None
        folder = Path(os.path.realpath(path.parent))
        if folder.parts[1:2] == ("proc",):
            return folder / path.name
        path = folder / os.readlink(path)
    return None


@contextmanager
def _staged_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file that is copied into the stream at the end."""
    descriptor = _stream(path)
    try:
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder, "content").with_suffix(path.suffix)
            temporary.touch()
            yield temporary
            if sys.stdout is not None:
                sys.stdout.flush()  # keep the order of the output
            with temporary.open("rb") as source, open(descriptor, "wb", closefd=False) as target:
                shutil.copyfileobj(source, target)
    finally:
        os.close(descriptor)


def _stream(path: Path) -> int:
    """Open a stream for writing without waiting for a reader."""
    place = _open_file(path)
    if place is not None and place.parent == Path(os.path.realpath("/proc/self/fd")):
        return os.dup(int(place.name))  # continues at that descriptor's position
    if stat.S_ISBLK(os.stat(path).st_mode):
        raise OSError(errno.ENOTSUP, "is a block device; give the name of a file")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(error.errno, "is a pipe or socket without a reader") from None
        raise
    os.set_blocking(descriptor, True)
    return descriptor


def older(path: Path, generation: int) -> Path:
    """Return the path of an older generation of a file."""
    return path.with_name(f"{path.stem}.{generation}{path.suffix}")


def _rotate(path: Path, keep: int) -> None:
    """Rotate the generations; a complete file exists at `path` at all times."""
    for generation in range(keep - 1, 1, -1):
        if older(path, generation - 1).exists():
            os.replace(older(path, generation - 1), older(path, generation))
    if keep > 1 and path.exists():
        first = older(path, 1)
        first.unlink(missing_ok=True)
        try:
            os.link(path, first)
        except OSError:  # a file system without hard links; for a moment only the older name exists
            os.replace(path, first)
    generation = keep
    while keep and older(path, generation).exists():
        older(path, generation).unlink()
        generation += 1


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that created, renamed and removed names survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> int:
    """Delete temporary files of killed processes in a folder not in use; return their count."""
    ours = (path for path in folder.glob(f".*{_MARK}*") if _TEMPORARY.fullmatch(path.name))
    found = [path for path in ours if path.is_file() and not path.is_symlink()]
    for path in found:
        path.unlink()
    return len(found)


class NotReadableError(ValueError):
    """Not a regular file, or too large."""


def read_regular(path: Path | str, *, max_bytes: int) -> bytes:
    """Return the content of a regular file.

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
            raise NotReadableError(f"{status.st_size} bytes; at most {max_bytes} are supported")
        content = os.read(descriptor, status.st_size + 1)
        # Some file systems report no size or return short reads, and a file may grow while it is read.
        if len(content) != status.st_size or not content:
            with open(descriptor, "rb", closefd=False) as file:
                content += file.read()
        return content
    finally:
        os.close(descriptor)


def broken_link(file: Path) -> Path | None:
    """Return the dangling symbolic link at a missing file or one of its parents, if any."""
    for path in (file, *file.parents):
        if os.path.islink(path):
            return path
        if os.path.lexists(path):
            return None
    return None

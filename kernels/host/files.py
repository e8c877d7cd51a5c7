"""Files that must never be half written: temporary name, fsync, rename, fsync of the folder."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MARK = ".tmp"


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replaces a file as a whole: a reader, or a crash at any moment, finds the old content or the new one.

    Raises:
        OSError: the folder cannot be written or the disk is full; the old file is untouched.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path, *, keep: int = 1, lasting: bool = True) -> Iterator[Path]:
    """Gives a temporary file beside `path`, with the same suffix, that takes the place of `path` when all went well.

    Args:
        path: in a folder that exists.
        keep: how many generations stay: `path`, then `older(path, 1)`, … `older(path, keep - 1)`.
        lasting: False spares a sync of the folder; after a power cut the name may stand for the older file, or none.
    Raises:
        OSError: as the writing raises it, naming `path`; all older files are untouched.
    """
    try:
        temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{_MARK}{path.suffix}")
        temporary.touch(exist_ok=False)  # with the rights that any new file of this user gets
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            _shift(path, keep)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        if lasting:
            sync_folder(path.parent)
    except OSError as error:
        # Names of temporary files mean nothing to the user.
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def older(path: Path, generation: int) -> Path:
    """The file that `path` was `generation` replacements ago."""
    return path.with_name(f"{path.stem}.{generation}{path.suffix}")


def _shift(path: Path, keep: int) -> None:
    """Makes every kept generation one older; there is a complete file under the name of `path` all the time."""
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
    generation = max(keep, 1)
    while older(path, generation).exists():
        older(path, generation).unlink()
        generation += 1


def sync_folder(folder: Path) -> None:
    """Makes new, renamed and removed names of a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> int:
    """Deletes the temporary files that a killed process left in a folder that nobody writes to; returns their count."""
    found = [path for path in folder.glob(f".*{_MARK}*") if path.is_file() and not path.is_symlink()]
    for path in found:
        path.unlink()
    return len(found)

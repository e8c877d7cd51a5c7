"""What is compiled once and kept: in folders of this user alone, each file with a note of its digest."""

import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kernels.host.cache_folder import user_cache_folder


class PluginUnavailableError(ValueError):
    """The plugin cannot be built or loaded here; the message holds the reason and the remedy."""


def cache_folder() -> Path:
    """Return the parent of all cached builds: $XDG_CACHE_HOME/graph-train/plugin, by default under ~/.cache."""
    return user_cache_folder() / "plugin"


def private_cache_folder(name: str) -> Path:
    """Return a folder in `cache_folder` that only this user may enter; make it if it does not exist.

    Raises:
        PluginUnavailableError: somebody else could have written it.
    """
    root = _private_folder(_private_folder(cache_folder().parent) / cache_folder().name)
    return _private_folder(root / name)


def _private_folder(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    check_private(path)
    path.chmod(0o700)
    return path


def check_private(path: Path) -> None:
    """Refuse what somebody else could have written: a library that is loaded runs as this user."""
    facts = path.lstat()
    if stat.S_ISLNK(facts.st_mode):
        raise PluginUnavailableError(f"{path}: is a symbolic link; remove it, it will be built again")
    if facts.st_uid != os.geteuid():
        raise PluginUnavailableError(
            f"{path}: belongs to user id {facts.st_uid}, not to you; remove it or set XDG_CACHE_HOME"
        )
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(facts.st_mode)
        raise PluginUnavailableError(
            f"{path}: others may write it (mode {mode:o}); remove it or run: chmod go-w '{path}'"
        )


def note_of(file: Path) -> Path:
    """Return where the digest of a kept file is noted."""
    return file.with_name(f"{file.name}.sha256")


def is_as_built(file: Path) -> bool:
    """Return whether the file is, byte for byte, the one whose digest was noted when it was compiled.

    It finds a damaged disk, a build that was cut off, and a file that was put in place of ours; whoever can write into
    the private folder as this user could note another digest too.

    Raises:
        PluginUnavailableError: the file, or the note, may have been written by others.
    """
    note = note_of(file)
    for one in (file, note):
        if not one.is_symlink() and not one.exists():
            return False
        check_private(one)
    return note.read_text(encoding="ascii", errors="replace").strip() == _digest(file)


def keep(finished: Path, file: Path) -> None:
    """Move a finished file to its place in a private folder of the same disk, and notes its digest."""
    # Renamed only when whole: a reader without the lock sees no file or all of it.
    finished.chmod(0o700)
    note = note_of(finished)
    note.write_text(f"{_digest(finished)}\n", encoding="ascii")
    note.chmod(0o600)
    finished.replace(file)
    note.replace(note_of(file))


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; a process that dies gives it back."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield

"""Cache of compiled files in private folders, with a digest next to each file."""

import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kernels.host.cache_folder import make_private_folder, user_cache_folder


class PluginUnavailableError(ValueError):
    """The plugin cannot be built or loaded; the message has the reason and the remedy."""


def cache_folder() -> Path:
    """Return the parent of all cached builds: $XDG_CACHE_HOME/graph-train/plugin, by default under ~/.cache."""
    return user_cache_folder() / "plugin"


def private_cache_folder(name: str) -> Path:
    """Return a subfolder of `cache_folder` that only this user can access; create it if needed.

    Raises:
        PluginUnavailableError: other users can write to it.
    """
    root = _private_folder(_private_folder(cache_folder().parent) / cache_folder().name)
    return _private_folder(root / name)


def in_read_only_cache(folder: str, name: str) -> Path | None:
    """Return an intact file of a cache that cannot be written, such as in a container with a read-only file system.

    Raises:
        PluginUnavailableError: other users can write to the cache.
    """
    inner = cache_folder() / folder
    if not inner.is_dir() or os.access(inner, os.W_OK):
        return None
    for level in (cache_folder().parent, cache_folder(), inner):
        check_private(level)
    return inner / name if is_intact(inner / name) else None


def _private_folder(path: Path) -> Path:
    make_private_folder(path)
    check_private(path)
    path.chmod(0o700)
    return path


def check_private(path: Path) -> None:
    """Raise if other users can write to the path: a loaded library runs with this user's rights."""
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
            f"{path}: writable by other users (mode {mode:o}); remove it or run: chmod go-w '{path}'"
        )


def digest_file(file: Path) -> Path:
    """Return the path of the digest of a cached file."""
    return file.with_name(f"{file.name}.sha256")


def is_intact(file: Path) -> bool:
    """Return whether a cached file matches the digest recorded when it was compiled.

    This detects damaged, truncated and replaced files. It is no protection from this user's own processes, which could
    also replace the digest.

    Raises:
        PluginUnavailableError: other users can write to the file or its digest.
    """
    note = digest_file(file)
    for one in (file, note):
        if not one.is_symlink() and not one.exists():
            return False
        check_private(one)
    return note.read_text(encoding="ascii", errors="replace").strip() == _digest(file)


def store_in_cache(finished: Path, file: Path) -> None:
    """Move a finished file into a cache folder on the same file system, and record its digest."""
    # Rename only complete files, for readers without the lock.
    finished.chmod(0o700)
    note = digest_file(finished)
    note.write_text(f"{_digest(finished)}\n", encoding="ascii")
    note.chmod(0o600)
    finished.replace(file)
    note.replace(digest_file(file))


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; it is released if the process dies."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield

"""The user's cache folder; nothing is cached in folders of data sets."""

import errno
import os
from pathlib import Path

from kernels.host.files import broken_link
from kernels.host.paths import printable

_REMEDY = "set XDG_CACHE_HOME to the absolute path of a folder that this user can write"


def user_cache_folder() -> Path:
    """Return `$XDG_CACHE_HOME/graph-train`, by default `~/.cache/graph-train`, without creating it.

    Raises:
        OSError: neither XDG_CACHE_HOME nor a home folder is known, as for a user that only a container has, or the
            home folder is relative.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path counts as unset.
    if os.path.isabs(base):
        return Path(base) / "graph-train"
    try:
        home = Path.home()
    except RuntimeError:
        raise OSError(f"user {os.getuid()} has no home folder for the cache: {_REMEDY}") from None
    if not home.is_absolute():  # a cache in each working folder would be compiled again in each of them
        raise OSError(f"the home folder {printable(home)} for the cache is not an absolute path: {_REMEDY}")
    return home / ".cache" / "graph-train"


def file_stamp(file: Path | str) -> bytes:
    """Return bytes that change if a file is modified, replaced, removed or made readable; used in cache keys."""
    try:
        status = os.stat(file)
    except OSError as error:
        return b"absent %d %d" % (error.errno or 0, broken_link(Path(file)) is not None)
    # The inode's change time reveals replaced or newly readable files with the same mtime and size.
    return b"%d %d %d" % (status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def make_private_folder(folder: Path) -> Path:
    """Create a folder and its missing parents, accessible only by this user, and return it.

    The cache of compiled kernels is below it and must not be writable by others.

    Raises:
        OSError: it cannot be created or written.
    """
    try:
        for level in (*reversed(folder.parents), folder):
            if not level.exists():
                level.mkdir(mode=0o700, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            code = errno.EROFS if os.statvfs(folder).f_flag & os.ST_RDONLY else errno.EACCES
            raise OSError(code, os.strerror(code), str(folder))
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; {_REMEDY}", error.filename) from None
    return folder

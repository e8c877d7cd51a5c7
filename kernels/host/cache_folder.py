"""The user's own cache folder, for what can be made again; nothing is cached in a data set's folder."""

import os
from pathlib import Path

from kernels.host.files import broken_link


def user_cache_folder() -> Path:
    """Return `$XDG_CACHE_HOME/graph-train`, by default `~/.cache/graph-train`; it need not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path counts as unset.
    folder = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return folder / "graph-train"


def file_stamp(file: Path | str) -> bytes:
    """Return bytes that differ after a file was changed, replaced, removed or made readable.

    They are part of the key of what was read from the file.
    """
    try:
        status = os.stat(file)
    except OSError as error:
        return b"absent %d %d" % (error.errno or 0, broken_link(Path(file)) is not None)
    # The time of the last change of its inode tells a replaced or newly readable file with the old time and size.
    return b"%d %d %d" % (status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def make_private_folder(folder: Path) -> Path:
    """Make a folder and those above it that are missing, for this user alone, and return it.

    Compiled kernels are kept in the same place, which is refused if others can write to it.

    Raises:
        OSError: it cannot be made.
    """
    for level in (*reversed(folder.parents), folder):
        if not level.exists():
            level.mkdir(mode=0o700, exist_ok=True)
    return folder

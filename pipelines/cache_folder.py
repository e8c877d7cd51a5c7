"""Where things are kept that can be made again: the user's own cache folder, never a data set's."""

import os
from pathlib import Path


def user_cache_folder() -> Path:
    """`$XDG_CACHE_HOME/graph-train`, by default `~/.cache/graph-train`; it need not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path counts as unset.
    folder = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return folder / "graph-train"


def make_private_folder(folder: Path) -> Path:
    """Makes a folder and those above it that are missing, for this user alone, and returns it.

    Compiled kernels are kept in the same place, which is refused if others can write to it.

    Raises:
        OSError: it cannot be made.
    """
    for level in (*reversed(folder.parents), folder):
        if not level.exists():
            level.mkdir(mode=0o700, exist_ok=True)
    return folder

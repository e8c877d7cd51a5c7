"""Where things are kept that can be made again: the user's own cache folder, never a data set's."""

from pathlib import Path

from kernels.user_cache import user_cache_folder

__all__ = ["make_private_folder", "user_cache_folder"]


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

"""The user's own cache folder: what is kept there can be made again."""

import os
from pathlib import Path


def user_cache_folder() -> Path:
    """`$XDG_CACHE_HOME/graph-train`, by default `~/.cache/graph-train`; it need not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path counts as unset.
    folder = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return folder / "graph-train"

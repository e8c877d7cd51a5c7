"""`~` and `~name` at the start of a path that somebody typed."""

from pathlib import Path

from pipelines.data.problems import printable


def with_home(path: Path | str) -> Path:
    """The path with its leading `~` or `~name` replaced by that user's home folder.

    Raises:
        ValueError: there is no such user, or no home folder is known.
    """
    try:
        return Path(path).expanduser()
    except (RuntimeError, ValueError):
        remedy = "write the whole path, or ./ in front of a name that starts with ~"
        raise ValueError(f"{printable(path)}: no home folder is known for it; {remedy}") from None

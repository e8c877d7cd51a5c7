"""Paths as text: one printable line for messages, and the home folder for a leading `~`."""

import os
from pathlib import Path


def printable(path: Path | str) -> str:
    """Return the path as one line of valid text: newlines, control characters and undecodable bytes become escapes."""
    text = os.fsencode(path).decode("utf-8", errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def with_home(path: Path | str) -> Path:
    """Return the path with its leading `~` or `~name` replaced by that user's home folder.

    Raises:
        ValueError: there is no such user, or no home folder is known.
    """
    try:
        return Path(path).expanduser()
    except (RuntimeError, ValueError):
        remedy = "write the whole path, or ./ in front of a name that starts with ~"
        raise ValueError(f"{printable(path)}: no home folder is known for it; {remedy}") from None

"""User-supplied paths: printable text, home folder expansion, and validation of output files."""

import os
import shlex
import tempfile
from collections.abc import Iterable
from pathlib import Path

from kernels.host.files import is_stream, resolve_links

_MAX_NAME_BYTES = 255


def printable(path: Path | str) -> str:
    """Return the path as one line of text, with control characters and undecodable bytes escaped."""
    try:
        text = os.fsencode(path).decode("utf-8", errors="backslashreplace")
    except UnicodeEncodeError:  # half of a surrogate pair, which only yaml or json can contain
        text = os.fspath(path)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def is_utf8(text: str) -> bool:
    """Return whether a path or URL is valid UTF-8, unlike one with undecodable bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def error_text(error: BaseException) -> str:
    """Return an error's message; an OSError's begins with the file, if it has one, and is without its number."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return error.strerror if error.filename is None else f"{printable(error.filename)}: {error.strerror}"


def shell_word(path: Path | str) -> str:
    """Return the path as a word of a suggested command, quoted if a shell would split or expand it."""
    text = printable(path)
    return shlex.quote(text) if text == os.fspath(path) else text


def fitting_name(stem: str, ending: str = "") -> str:
    """Return `stem + ending`, with the stem cut so that it is not too long for a file name."""
    while len(os.fsencode(stem + ending)) > _MAX_NAME_BYTES:
        stem = stem[:-1]
    return stem + ending


def why_missing(path: Path | str, kind: str) -> str:
    """Return why a path is not a file of a kind, such as "weight file": missing, or something else."""
    return "not a regular file" if os.path.exists(path) else f"no such {kind}"


def with_home(path: Path | str) -> Path:
    """Expand a leading `~` or `~name` to the home folder.

    Raises:
        ValueError: unknown user or home folder.
    """
    try:
        return Path(path).expanduser()
    except (RuntimeError, ValueError):
        remedy = "give the full path, or put ./ in front of a name that starts with ~"
        raise ValueError(f"{printable(path)}: unknown home folder; {remedy}") from None


def output_file(flag: str, name: str, *, makes_folder: bool = False) -> Path:
    """Return the file to write for a flag such as `--json`, with links resolved; raise if it is not writable.

    Args:
        flag: name of the flag, for messages.
        name: the user's path.
        makes_folder: whether a missing folder is created with the file.
    Raises:
        ValueError: not writable, with the reason.
    """
    path = Path(name)
    if not name or "\0" in name:
        raise ValueError(f"{flag} {name!r}: not a file name")
    if path.is_dir() or name.endswith("/"):
        raise ValueError(f"{flag} {name}: is a folder; give the name of a file in it")
    if is_stream(path):
        if path.is_block_device() or path.is_socket():
            raise ValueError(f"{flag} {name}: is a block device or socket; give the name of a file")
        return path
    target = resolve_links(path)
    if os.path.islink(target):
        raise ValueError(f"{flag} {name}: is a symbolic link that leads back to itself; remove it")
    if not target.parent.is_dir():
        if not makes_folder:
            raise ValueError(f"{flag} {name}: folder {target.parent} not found; create it first")
    elif reason := not_writable(target.parent):
        raise ValueError(f"{flag} {name}: folder {target.parent} is not writable ({reason}); choose another one")
    return target


def not_writable(folder: Path) -> str:
    """Return why nothing can be created in a folder; "" if it can. Permission bits can be wrong, as in /proc."""
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".graph-train-", dir=folder))
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""


def reject_overwriting(target: Path | None, files: Iterable[Path | str]) -> None:
    """Reject an output that would replace one of the files of a data set that were read.

    Raises:
        ValueError: the output is one of the files.
    """
    if target is None or not target.is_file():
        return
    for file in files:
        # Most files differ by their names already.
        if os.path.basename(file) == target.name and os.path.exists(file) and os.path.samefile(file, target):
            raise ValueError(f"{printable(target)}: is a file of the data set and would be overwritten; choose another")

"""Files that a flag names for a result: refused before the work is done, not after it."""

import os
from pathlib import Path

from kernels.host.files import followed, is_stream


def output_file(flag: str, name: str, *, makes_folder: bool = False) -> Path:
    """Return where the content for a flag such as `--json` goes: what a link leads to.

    Pipes and devices are written into.

    Args:
        flag: what the user calls it.
        name: what the user gave.
        makes_folder: the folder is made with the file.
    Raises:
        ValueError: nothing can be written there; says why.
    """
    path = Path(name)
    if not name or "\0" in name:
        raise ValueError(f"{flag} {name!r}: no name of a file")
    if path.is_dir():
        raise ValueError(f"{flag} {name}: a folder; give the name of a file in it")
    if is_stream(path):
        if path.is_block_device() or path.is_socket():
            raise ValueError(f"{flag} {name}: a disk or socket, which nothing is written into; name a file")
        return path
    target = followed(path)
    if not target.parent.is_dir():
        if not makes_folder:
            raise ValueError(f"{flag} {name}: there is no folder {target.parent}; make it first")
    elif not os.access(target.parent, os.W_OK | os.X_OK):
        raise ValueError(f"{flag} {name}: the folder {target.parent} may not be written to; choose another place")
    return target

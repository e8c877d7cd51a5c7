"""Protection of the user's files against the reports of `graph-check`."""

import os
from collections.abc import Iterable
from pathlib import Path

from kernels.host.paths import printable


def reject_overwriting(target: Path | None, files: Iterable[Path | str]) -> None:
    """Reject an output that would replace one of the files that were read.

    Raises:
        ValueError: the output is one of the files.
    """
    if target is None or not target.is_file():
        return
    for file in files:
        # Most files differ by their names already.
        if os.path.basename(file) == target.name and os.path.exists(file) and os.path.samefile(file, target):
            raise ValueError(f"{printable(target)}: is a file of the data set and would be overwritten; choose another")

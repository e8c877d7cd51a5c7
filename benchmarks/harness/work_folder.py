"""Where a benchmark that trains through the command line puts its runs."""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def add_work_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--work`."""
    parser.add_argument("--work", metavar="FOLDER", help="keep what was trained there; default: a temporary folder")


@contextmanager
def work_folder(asked: str | None, *, exist_ok: bool = False) -> Iterator[Path]:
    """Make the folder that `--work` names, which stays, or one that is deleted afterwards.

    Args:
        asked: `--work`.
        exist_ok: go on in a folder of an earlier run.
    Raises:
        FileExistsError: it is there already.
    """
    if asked is None:
        with tempfile.TemporaryDirectory(prefix="graph-bench-") as folder:
            yield Path(folder)
        return
    Path(asked).mkdir(parents=True, exist_ok=exist_ok)
    yield Path(asked)

"""Folder for the runs of a benchmark that trains through the command line."""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def add_work_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--work`."""
    parser.add_argument("--work", metavar="FOLDER", help="keep the runs in FOLDER (default: a temporary folder)")


@contextmanager
def work_folder(work: str | None, *, exist_ok: bool = False) -> Iterator[Path]:
    """Create the folder of `--work`, which is kept, or a temporary one.

    Args:
        work: value of `--work`.
        exist_ok: continue in the folder of an earlier run.
    Raises:
        FileExistsError: it exists already.
    """
    if work is None:
        with tempfile.TemporaryDirectory(prefix="graph-bench-") as folder:
            yield Path(folder)
        return
    Path(work).mkdir(parents=True, exist_ok=exist_ok)
    yield Path(work)

"""Flags that several benchmarks have; each benchmark adds only the ones it uses."""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

DEFAULT_REPEATS = 7
MAX_BATCH_SIZE, MAX_IMAGE_PX = 1 << 16, 1 << 14
"""Limits that catch typing errors, which would otherwise exhaust memory."""


def add_repeats(parser: argparse.ArgumentParser) -> None:
    """Add `--repeats`, for benchmarks whose sides are measured in turn."""
    parser.add_argument("--repeats", type=int, default=DEFAULT_REPEATS, help="measurements per side")


def add_quick(parser: argparse.ArgumentParser) -> None:
    """Add `--quick`, for benchmarks with a short version."""
    parser.add_argument("--quick", action="store_true", help="measure less, to finish within minutes")


def add_training(parser: argparse.ArgumentParser, *, cfg: str, image_px: int, batch_size: int) -> None:
    """Add the flags of a training with these defaults."""
    parser.add_argument("--data", default="shapes", help="dataset yaml, or `shapes` for the built-in data set")
    parser.add_argument("--cfg", default=cfg, help="model yaml")
    parser.add_argument("--imgsz", type=int, default=image_px, help="image size in px")
    parser.add_argument("--batch-size", type=int, default=batch_size, help="images per batch")


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--train-flags`, for benchmarks that start `graph-train`."""
    parser.add_argument(
        "--train-flags",
        default="",
        metavar="FLAGS",
        help="additional graph-train flags, such as --train-flags='--cache ram'",
    )


def add_points(parser: argparse.ArgumentParser, points: Sequence[str]) -> None:
    """Add `--points`; its help names the default `points`, which the benchmark applies itself."""
    parser.add_argument(
        "--points", nargs="+", metavar="MODEL:BATCH:PX", help=f"points to measure (default: {' '.join(points)})"
    )


def add_work(parser: argparse.ArgumentParser) -> None:
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

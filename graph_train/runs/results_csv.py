"""`results.csv`: one row per epoch, in YOLOv5's format of 14 padded columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kernels.host.files import write_atomically

RESULTS = "results.csv"
VALIDATION_KEYS: tuple[str, ...] = (
    "metrics/precision",
    "metrics/recall",
    "metrics/mAP_0.5",
    "metrics/mAP_0.5:0.95",
    "val/box_loss",
    "val/obj_loss",
    "val/cls_loss",
)
"""Results of a validation; zeros for an epoch without validation."""
RESULT_KEYS: tuple[str, ...] = (
    "train/box_loss",
    "train/obj_loss",
    "train/cls_loss",
    *VALIDATION_KEYS,
    "x/lr0",
    "x/lr1",
    "x/lr2",
)
"""Values logged each epoch, with YOLOv5's names and order; used by all loggers."""
COLUMNS: tuple[str, ...] = ("epoch", *RESULT_KEYS)
HEADER = ",".join(f"{name:>20s}" for name in COLUMNS)


@dataclass(frozen=True)
class EpochRow:
    """Results of one epoch (from 0)."""

    epoch: int
    train_losses: tuple[float, float, float]
    """Box, objectness and class loss, averaged over the epoch's batches."""
    metrics: tuple[float, float, float, float]
    """Precision, recall, mAP50, mAP50-95."""
    val_losses: tuple[float, float, float]
    learning_rates: tuple[float, float, float]
    """Learning rates of the last iteration: biases, weights, normalisation weights."""

    def values(self) -> tuple[float, ...]:
        """Return the 13 numbers in the order of `RESULT_KEYS`."""
        return (*self.train_losses, *self.metrics, *self.val_losses, *self.learning_rates)

    def line(self) -> str:
        """Return the row as YOLOv5 writes it: 20 characters per column, 5 significant digits."""
        return ",".join(f"{value:20.5g}" for value in (self.epoch, *self.values()))


def differing_epoch(path: Path, lines: Sequence[str]) -> int | None:
    """Return the first epoch for which an existing file has other numbers than `lines`, the rows from a checkpoint.

    Rows that only one of them has, incomplete rows and the format of numbers make no difference.
    """
    if not path.exists():
        return None
    with path.open(encoding="utf-8", errors="replace") as file:
        next(file, None)
        for epoch, (found, saved) in enumerate(zip(file, lines, strict=False)):
            numbers = _numbers(found)
            if numbers is not None and numbers != _numbers(saved):
                return epoch
    return None


def _numbers(line: str) -> tuple[str, ...] | None:
    """Return the numbers of a row as `EpochRow.line` prints them; None for an incomplete row."""
    cells = line.split(",")
    try:
        return tuple(f"{float(cell):.5g}" for cell in cells) if len(cells) == len(COLUMNS) else None
    except ValueError:
        return None


class ResultsCsv:
    """The results file; each row is on the disk when `append` returns.

    Args:
        path: the file.
        lines: the rows of earlier epochs, from a checkpoint.
    """

    def __init__(self, path: Path, lines: Sequence[str] = ()) -> None:
        self._path = path
        self.lines = list(lines)

    def begin(self) -> None:
        """Reset the file to the rows of earlier epochs; later rows and incomplete lines are dropped.

        Raises:
            ValueError: the file exists but is not a `results.csv`; it is not modified.
            OSError: the file cannot be written.
        """
        if not self._path.exists() and not self.lines:
            return
        if self._path.exists():
            with self._path.open(encoding="utf-8", errors="replace") as file:
                first = file.readline().rstrip("\n")
            if first and first != HEADER:
                raise ValueError(f"{self._path}:1: not a results.csv with YOLOv5's columns; move it away")
        self._write()

    def append(self, row: EpochRow) -> None:
        """Add a row. If writing fails, the row is written together with the next one.

        Raises:
            OSError: the file cannot be written; it is unchanged.
        """
        self.lines.append(row.line())
        self._write()

    def _write(self) -> None:
        # Rewrites the whole file, which is small, so that it is never incomplete.
        write_atomically(self._path, "\n".join([HEADER, *self.lines, ""]))

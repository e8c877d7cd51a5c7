"""`results.csv`: one row per epoch in YOLOv5's 14 padded columns, so that its readers work unchanged."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kernels.host.files import write_atomically

VALIDATION_KEYS: tuple[str, ...] = (
    "metrics/precision",
    "metrics/recall",
    "metrics/mAP_0.5",
    "metrics/mAP_0.5:0.95",
    "val/box_loss",
    "val/obj_loss",
    "val/cls_loss",
)
"""What one validation gives; zeros stand where there was none."""
RESULT_KEYS: tuple[str, ...] = (
    "train/box_loss",
    "train/obj_loss",
    "train/cls_loss",
    *VALIDATION_KEYS,
    "x/lr0",
    "x/lr1",
    "x/lr2",
)
"""What is logged each epoch, in the reference's order and under its names; every logger uses these."""
COLUMNS: tuple[str, ...] = ("epoch", *RESULT_KEYS)
HEADER = ",".join(f"{name:>20s}" for name in COLUMNS)


@dataclass(frozen=True)
class EpochRow:
    """Results of one epoch (from 0)."""

    epoch: int
    train_losses: tuple[float, float, float]
    """Box, objectness, classes: means over the epoch's batches."""
    metrics: tuple[float, float, float, float]
    """Precision, recall, mAP50, mAP50-95."""
    val_losses: tuple[float, float, float]
    learning_rates: tuple[float, float, float]
    """Of the last iteration: biases, weights, normalisation weights."""

    def values(self) -> tuple[float, ...]:
        """Return the 13 numbers in the order of `RESULT_KEYS`."""
        return (*self.train_losses, *self.metrics, *self.val_losses, *self.learning_rates)

    def line(self) -> str:
        """Return the row as the reference prints it: 20 characters a column, 5 significant digits."""
        return ",".join(f"{value:20.5g}" for value in (self.epoch, *self.values()))


class ResultsCsv:
    """A file kept equal to the rows it has been given; each row is on the disk when `append` returns.

    Args:
        path: of the file.
        lines: rows of the epochs before those that will be appended, as a checkpoint holds them.
    """

    def __init__(self, path: Path, lines: Sequence[str] = ()) -> None:
        self._path = path
        self.lines = list(lines)

    def begin(self) -> None:
        """Make the file hold what this run starts with: rows that it will write again, and a torn line, are dropped.

        Raises:
            ValueError: the file is no `results.csv`; it is left as it is.
            OSError: it cannot be written.
        """
        if not self._path.exists() and not self.lines:
            return
        if self._path.exists():
            with self._path.open(encoding="utf-8", errors="replace") as file:
                first = file.readline().rstrip("\n")
            if first and first != HEADER:
                raise ValueError(f"{self._path}:1: not a results.csv of YOLOv5's columns; move it away")
        self._write()

    def append(self, row: EpochRow) -> None:
        """Add one row; after an error it is written together with the next one.

        Raises:
            OSError: the file cannot be written; it holds what it held before.
        """
        self.lines.append(row.line())
        self._write()

    def _write(self) -> None:
        # As a whole: the file is small, and there is no moment at which it is torn.
        write_atomically(self._path, "\n".join([HEADER, *self.lines, ""]))

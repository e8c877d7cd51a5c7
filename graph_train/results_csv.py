"""`results.csv`: one row per epoch in YOLOv5's 14 padded columns, so that its readers work unchanged."""

import os
from dataclasses import dataclass
from pathlib import Path

from graph_train.files import write_atomically

RESULT_KEYS: tuple[str, ...] = (
    "train/box_loss",
    "train/obj_loss",
    "train/cls_loss",
    "metrics/precision",
    "metrics/recall",
    "metrics/mAP_0.5",
    "metrics/mAP_0.5:0.95",
    "val/box_loss",
    "val/obj_loss",
    "val/cls_loss",
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
        """The 13 numbers in the order of `RESULT_KEYS`."""
        return (*self.train_losses, *self.metrics, *self.val_losses, *self.learning_rates)

    def line(self) -> str:
        """The row as the reference prints it: 20 characters a column, 5 significant digits."""
        return ",".join(f"{value:20.5g}" for value in (self.epoch, *self.values()))


class ResultsCsv:
    """Appends rows to one file; each is on the disk when `append` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def truncate(self, epoch: int) -> None:
        """Drops the rows from `epoch` on, and a torn last line: what a run that starts at `epoch` will write again.

        Raises:
            ValueError: the file is no `results.csv`; it is left as it is.
        """
        if not self._path.exists():
            return
        lines = self._path.read_text(encoding="utf-8").splitlines()
        if lines and lines[0] != HEADER:
            raise ValueError(
                f"{self._path}:1: not a results.csv of YOLOv5's columns; move it away or use another --name"
            )
        kept = [line for number, line in enumerate(lines[1:], start=2) if self._epoch_of(line, number, lines) < epoch]
        write_atomically(self._path, "\n".join([HEADER, *kept, ""]))

    def append(self, row: EpochRow) -> None:
        """Writes one row, after the header if the file is new.

        Raises:
            OSError: it cannot be written.
        """
        with self._path.open("a", encoding="utf-8") as file:
            start = HEADER + "\n" if file.tell() == 0 else ""
            file.write(f"{start}{row.line()}\n")
            file.flush()
            os.fsync(file.fileno())

    def _epoch_of(self, line: str, number: int, lines: list[str]) -> float:
        cells = line.split(",")
        try:
            if len(cells) == len(COLUMNS):
                return float(cells[0])
        except ValueError:
            pass
        if number == len(lines):
            return float("inf")  # the write of the last line was cut off
        raise ValueError(f"{self._path}:{number}: not a row of {len(COLUMNS)} numbers; repair or remove the file")

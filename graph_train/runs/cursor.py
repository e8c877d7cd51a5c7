"""The position of a run, saved in every checkpoint."""

import math
from dataclasses import dataclass, field

from graph_train.engine.step import StepResult


@dataclass
class Cursor:
    """Position and running totals of a run."""

    epoch: int = 0
    next_batch: int = 0
    """Number of completed batches of this epoch."""
    loss_sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    """Sums of box, objectness and class loss over the batches of this epoch with finite losses."""
    losses: int = 0
    """Number of these batches."""
    maps: list[float] = field(default_factory=list)
    """mAP50-95 of each class at the last validation, used by `--image-weights`."""
    best_fitness: float = -1.0
    possible_stop: bool = False
    """Whether the next epoch may be the last, so that it is validated and saved even with `--noval` and `--nosave`."""
    finished: bool = False

    def add(self, result: StepResult) -> None:
        """Add the result of a batch."""
        parts = (result.box, result.objectness, result.classes)
        if math.isfinite(sum(parts)):
            self.loss_sums = [total + part for total, part in zip(self.loss_sums, parts, strict=True)]
            self.losses += 1
        self.next_batch += 1

    def means(self) -> tuple[float, float, float]:
        """Return the mean box, objectness and class loss of the epoch so far; NaN if no batch had finite losses."""
        if not self.losses:
            return (math.nan if self.next_batch else 0.0,) * 3
        box, objectness, classes = (total / self.losses for total in self.loss_sums)
        return box, objectness, classes

    def next_epoch(self) -> None:
        """Move to the start of the next epoch."""
        self.epoch, self.next_batch, self.loss_sums, self.losses = self.epoch + 1, 0, [0.0, 0.0, 0.0], 0

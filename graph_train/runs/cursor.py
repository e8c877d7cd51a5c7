"""How far a run has come: saved with every checkpoint, so that it goes on exactly there."""

import math
from dataclasses import dataclass, field

from graph_train.engine.step import StepResult


@dataclass
class Cursor:
    """Position of a run and what it has added up so far."""

    epoch: int = 0
    next_batch: int = 0
    """Batches of this epoch that are done; all of them where only its validation is left."""
    loss_sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    """Box, objectness and class loss, summed over the batches of this epoch whose losses were finite."""
    losses: int = 0
    """How many batches those are."""
    maps: list[float] = field(default_factory=list)
    """mAP50-95 of each class at the last validation, which `--image-weights` uses."""
    best_fitness: float = -1.0
    possible_stop: bool = False
    """The coming epoch may be the last one, so it is validated and saved even with `--noval` and `--nosave`."""
    finished: bool = False

    def add(self, result: StepResult) -> None:
        """Count one batch."""
        parts = (result.box, result.objectness, result.classes)
        if math.isfinite(sum(parts)):
            self.loss_sums = [total + part for total, part in zip(self.loss_sums, parts, strict=True)]
            self.losses += 1
        self.next_batch += 1

    def means(self) -> tuple[float, float, float]:
        """Return the mean box, objectness and class loss of the epoch so far; NaN where no batch had a finite loss."""
        if not self.losses:
            return (math.nan if self.next_batch else 0.0,) * 3
        box, objectness, classes = (total / self.losses for total in self.loss_sums)
        return box, objectness, classes

    def next_epoch(self) -> None:
        """Move to the start of the following epoch."""
        self.epoch, self.next_batch, self.loss_sums, self.losses = self.epoch + 1, 0, [0.0, 0.0, 0.0], 0

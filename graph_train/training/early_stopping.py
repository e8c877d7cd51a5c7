"""Ends a run whose fitness has stopped rising.

All ranks come to the same answer without talking to one another, as long as each is given the same fitness.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class StopDecision:
    """What the epoch just counted means for the run."""

    stop: bool
    """The run ends here."""
    possible_stop: bool
    """The next epoch without improvement would end it, so that one must be validated even with --noval."""


class EarlyStopping:
    """Counts epochs since the best fitness.

    Args:
        patience: epochs without improvement that are allowed; 0 never stops.

    Raises:
        ValueError: a negative patience.
    """

    def __init__(self, patience: int) -> None:
        if patience < 0:
            raise ValueError(f"patience={patience}: must be >= 0; 0 never stops")
        self._patience = patience or math.inf
        self.best_fitness = 0.0
        self.best_epoch = 0

    def update(self, epoch: int, fitness: float) -> StopDecision:
        """Count one validated epoch; an equal fitness counts as an improvement, as in YOLOv5."""
        if fitness >= self.best_fitness:
            self.best_epoch, self.best_fitness = epoch, fitness
        waited = epoch - self.best_epoch
        return StopDecision(stop=waited >= self._patience, possible_stop=waited >= self._patience - 1)

    def state(self) -> dict[str, float]:
        """Return what a checkpoint must keep so that a resumed run stops when the uninterrupted one would."""
        return {"best_fitness": self.best_fitness, "best_epoch": self.best_epoch}

    def restore(self, state: Mapping[str, float]) -> None:
        """Continues from a checkpoint's `state()`."""
        self.best_fitness, self.best_epoch = float(state["best_fitness"]), int(state["best_epoch"])

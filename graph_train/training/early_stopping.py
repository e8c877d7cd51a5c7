"""Early stopping on the validation fitness; ranks that are given the same fitness decide the same."""

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class StopDecision:
    """Decision after an epoch."""

    stop: bool
    """Whether the run ends with this epoch."""
    possible_stop: bool
    """Whether the run ends if the next epoch brings no improvement; then that epoch is validated even with --noval."""


class EarlyStopping:
    """Counter of the epochs since the best fitness.

    Args:
        patience: allowed number of epochs without improvement; 0 never stops.

    Raises:
        ValueError: patience is negative.
    """

    def __init__(self, patience: int) -> None:
        if patience < 0:
            raise ValueError(f"patience={patience}: must be >= 0; 0 never stops")
        self._patience = patience or math.inf
        self.best_fitness = 0.0
        self.best_epoch = 0

    def update(self, epoch: int, fitness: float) -> StopDecision:
        """Record an epoch's fitness; an equal fitness counts as an improvement, as in YOLOv5."""
        if fitness >= self.best_fitness:
            self.best_epoch, self.best_fitness = epoch, fitness
        waited = epoch - self.best_epoch
        return StopDecision(stop=waited >= self._patience, possible_stop=waited >= self._patience - 1)

    def state(self) -> dict[str, float]:
        """Return the state to save in a checkpoint, so that a resumed run stops when the uninterrupted one would."""
        return {"best_fitness": self.best_fitness, "best_epoch": self.best_epoch}

    def restore(self, state: Mapping[str, float]) -> None:
        """Restore a saved `state()`."""
        self.best_fitness, self.best_epoch = float(state["best_fitness"]), int(state["best_epoch"])

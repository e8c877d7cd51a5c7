"""Progress of a training epoch in the terminal: a bar, or a single line if the output is not a terminal."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from graph_train.engine.step import TrainStep
from graph_train.host.terminal import BAR_FORMAT

LOG = logging.getLogger("graph_train")
DATA_BOUND_SHARE = 0.10
"""An epoch is data-bound if it spends more than this fraction of its time waiting for data."""
_ROW = "{:>10}{:>11}{:>11}{:>11}{:>11}{:>8}{:>9}"
HEADER = _ROW.format("Epoch", "box_loss", "obj_loss", "cls_loss", "Instances", "Size", "img/s")


@dataclass
class TimeSpent:
    """Seconds of an epoch by activity."""

    waiting: float = 0.0
    """Time spent waiting for the next batch."""
    computing: float = 0.0
    """Time spent in the step, including reading its result."""
    compiling: float = 0.0
    """The part of `computing` spent compiling graphs."""

    @contextmanager
    def count_computing(self, step: TrainStep) -> Iterator[None]:
        """Count the time inside the context as computing, and the compilations in it as compiling too."""
        started, compiled = time.perf_counter(), step.compile_seconds
        yield
        self.computing += time.perf_counter() - started
        self.compiling += step.compile_seconds - compiled

    def summary(self, elapsed: float) -> str:
        """Return the percentages, with advice if the epoch is data-bound."""
        elapsed = max(elapsed, 1e-9)
        waiting, computing = self.waiting / elapsed, self.computing / elapsed
        host = 1 - waiting - computing
        text = f"time: {waiting:.0%} waiting for data, {computing:.0%} computing, {host:.0%} on the host"
        if waiting > DATA_BOUND_SHARE:
            text += "  (data-bound: raise --workers / --cache ram)"
        return text


@dataclass(frozen=True)
class EpochTimes:
    """Times of one epoch in seconds; for a resumed epoch, only those since it was resumed."""

    epoch: int
    images: int
    training: float
    """Time from the first batch to the last."""
    waiting: float
    computing: float
    compiling: float
    validating: float = 0.0


class EpochProgress:
    """Progress bar and timing of one epoch."""

    def __init__(self, epoch: int, epochs: int, *, batches: int, first_batch: int) -> None:
        self._epoch, self._label = epoch, f"{epoch}/{epochs - 1}"
        LOG.info("\n%s", HEADER)
        # None: no bar if stderr is a file or a pipe; a line at the end of the epoch is logged instead.
        self._bar: Any = tqdm(total=batches, initial=first_batch, bar_format=BAR_FORMAT, disable=None)
        self._started = time.perf_counter()
        self._images = 0
        self.spent = TimeSpent()
        self._row = ""

    def step(self, losses: tuple[float, float, float], *, instances: int, images: int, image_px: int) -> None:
        """Show the mean losses so far and the size of the latest batch."""
        self._images += images
        speed = self._images / max(time.perf_counter() - self._started, 1e-9)
        numbers = (f"{value:.4g}" for value in losses)
        self._row = _ROW.format(self._label, *numbers, instances, image_px, f"{speed:.1f}")
        self._bar.set_description_str(self._row, refresh=False)
        self._bar.update(1)

    def close(self) -> EpochTimes:
        """Close the bar, or log its last state if it was not shown, and log where the time was spent."""
        shown = not self._bar.disable
        self._bar.close()
        elapsed, spent = time.perf_counter() - self._started, self.spent
        if self._row:
            if not shown:
                LOG.info("%s", self._row)
            LOG.info("%s", spent.summary(elapsed))
        return EpochTimes(self._epoch, self._images, elapsed, spent.waiting, spent.computing, spent.compiling)

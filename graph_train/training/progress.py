"""What a run tells the terminal while it trains: a bar per epoch where there is one to draw on, else a line."""

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
"""Share of the time spent waiting for data above which an epoch is called data-bound."""
_ROW = "{:>10}{:>11}{:>11}{:>11}{:>11}{:>8}{:>9}"
HEADER = _ROW.format("Epoch", "box_loss", "obj_loss", "cls_loss", "Instances", "Size", "img/s")


@dataclass
class Shares:
    """Seconds of an epoch by what they were spent on."""

    waiting: float = 0.0
    """The step was idle because no batch was ready."""
    computing: float = 0.0
    """In the step, the reading back of its result included."""

    compiling: float = 0.0
    """The part of `computing` in which graphs were compiled."""

    @contextmanager
    def computing_for(self, step: TrainStep) -> Iterator[None]:
        """Count what happens inside as computing, and what the step compiles meanwhile as compiling too."""
        started, compiled = time.perf_counter(), step.compile_seconds
        yield
        self.computing += time.perf_counter() - started
        self.compiling += step.compile_seconds - compiled

    def line(self, elapsed: float) -> str:
        """Return the shares in percent, and what to do if data is the bottleneck."""
        elapsed = max(elapsed, 1e-9)
        waiting, computing = self.waiting / elapsed, self.computing / elapsed
        host = 1 - waiting - computing
        text = f"time: {waiting:.0%} waiting for data, {computing:.0%} computing, {host:.0%} on the host"
        if waiting > DATA_BOUND_SHARE:
            text += "  (data-bound: raise --workers / --cache ram)"
        return text


@dataclass(frozen=True)
class EpochTimes:
    """Where the time of one epoch went, in seconds; of an epoch that was resumed, only the part since then."""

    epoch: int
    images: int
    training: float
    """From the first batch to the last, all shares included."""
    waiting: float
    computing: float
    compiling: float
    validating: float = 0.0


class EpochProgress:
    """Progress of one epoch."""

    def __init__(self, epoch: int, epochs: int, *, batches: int, first_batch: int) -> None:
        self._epoch, self._label = epoch, f"{epoch}/{epochs - 1}"
        LOG.info("\n%s", HEADER)
        # None: no bar where stderr is a file or a pipe; the line at the end of the epoch is enough there.
        self._bar: Any = tqdm(total=batches, initial=first_batch, bar_format=BAR_FORMAT, disable=None)
        self._started = time.perf_counter()
        self._images = 0
        self.shares = Shares()
        self._row = ""

    def step(self, losses: tuple[float, float, float], *, instances: int, images: int, image_px: int) -> None:
        """Show the mean losses so far and the latest batch."""
        self._images += images
        speed = self._images / max(time.perf_counter() - self._started, 1e-9)
        numbers = (f"{value:.4g}" for value in losses)
        self._row = _ROW.format(self._label, *numbers, instances, image_px, f"{speed:.1f}")
        self._bar.set_description_str(self._row, refresh=False)
        self._bar.update(1)

    def close(self) -> EpochTimes:
        """End the bar, or print its last state where there was none, and log the shares of time."""
        shown = not self._bar.disable
        self._bar.close()
        elapsed, shares = time.perf_counter() - self._started, self.shares
        if self._row:
            if not shown:
                LOG.info("%s", self._row)
            LOG.info("%s", shares.line(elapsed))
        return EpochTimes(self._epoch, self._images, elapsed, shares.waiting, shares.computing, shares.compiling)

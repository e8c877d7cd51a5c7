"""Time limits of the kit: a stage may use its own seconds and those left over by earlier stages."""

import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

SECONDS: Mapping[str, float] = {"kernels": 150, "pictures": 150, "training": 240, "speed": 60}
"""Seconds of each stage, in the order in which they run.

The host's part, measured without a GPU: 13 s of one core to compile the CUDA kernels, 18 s for a training of one epoch
with its validation, plots and report. The plugin compiles for minutes where there are two cores.
"""
MIN_SPEED_SECONDS = 45
"""Minimum seconds left for the speed stage to run."""


@dataclass(frozen=True)
class StageBudget:
    """The time limit of one stage.

    Attributes:
        stage: name of the stage.
        deadline: time on `clock` when it must be finished.
        clock: function that returns seconds, such as `time.monotonic`.
    """

    stage: str
    deadline: float
    clock: Callable[[], float] = time.monotonic

    def left(self) -> float:
        """Return the seconds until the deadline; 0 or less if it has passed."""
        return self.deadline - self.clock()

    def spent(self) -> str:
        """Return the message of a skipped case that has no time left."""
        return f"no time is left for the stage {self.stage!r}"


UNLIMITED = StageBudget("kernels", math.inf)
"""Seconds of the stage on the emulated device, which needs no rented machine."""


def all_seconds() -> float:
    """Return the total seconds of all stages."""
    return sum(SECONDS.values())


def stage_budgets(clock: Callable[[], float] = time.monotonic) -> list[StageBudget]:
    """Return the budgets of all stages from now on."""
    ends = itertools.accumulate(SECONDS.values(), initial=clock())
    return [StageBudget(stage, end, clock) for stage, end in zip(SECONDS, list(ends)[1:], strict=True)]

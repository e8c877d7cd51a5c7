"""How the kit keeps to ten minutes: a stage may take its own seconds and what the stages before it have left over."""

import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

SECONDS: Mapping[str, float] = {"kernels": 150, "pictures": 150, "training": 240, "speed": 60}
"""Of each stage, in the order in which they run.

The host's part, measured without a GPU: 13 s of one core to compile the CUDA kernels, 18 s for a training of one epoch
with its validation, plots and report. The plugin compiles for minutes where there are two cores.
"""
LEAST_FOR_SPEED = 45
"""Seconds below which the stage that only measures is left out."""


@dataclass(frozen=True)
class StageBudget:
    """The time of one stage.

    Attributes:
        stage: its name.
        deadline: when it must be over, on `clock`.
        clock: seconds, as `time.monotonic`.
    """

    stage: str
    deadline: float
    clock: Callable[[], float] = time.monotonic

    def left(self) -> float:
        """Return seconds until the deadline; none are left at 0 and below."""
        return self.deadline - self.clock()

    def spent(self) -> str:
        """Return the message of what has no time any more."""
        return f"the time of the stage {self.stage!r} is used up"


UNLIMITED = StageBudget("kernels", math.inf)
"""Of the emulated device, which nobody waits for at a rented machine."""


def all_seconds() -> float:
    """Return the seconds that all stages may take together."""
    return sum(SECONDS.values())


def stage_budgets(clock: Callable[[], float] = time.monotonic) -> list[StageBudget]:
    """Return the budgets of all stages from now on."""
    ends = itertools.accumulate(SECONDS.values(), initial=clock())
    return [StageBudget(stage, end, clock) for stage, end in zip(SECONDS, list(ends)[1:], strict=True)]

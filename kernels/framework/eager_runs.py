"""When compiling a graph for an input shape is worth its time."""

from collections import Counter
from collections.abc import Hashable

EAGER_RUNS = 16
"""Runs of a shape that are executed op by op before it is compiled. On a CPU compiling takes as long as many more
replays save (`graph-bench graph-vs-eager`), so a rare shape is never compiled, and a frequent one has lost little."""


class EagerRuns:
    """Counter of the runs of each shape that are executed op by op, with the same bits, instead of compiling it."""

    def __init__(self) -> None:
        self._runs: Counter[Hashable] = Counter()

    def take(self, shape: Hashable) -> bool:
        """Return whether to execute this run op by op, and count it."""
        if self._runs[shape] >= EAGER_RUNS:
            return False
        self._runs[shape] += 1
        return True

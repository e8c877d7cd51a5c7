"""When to compile a graph for an input shape."""

from collections import Counter
from collections.abc import Hashable

EAGER_RUNS = 16
"""Eager runs of a shape before it is compiled. On a CPU compiling pays off only after many runs (`graph-bench
graph-vs-eager`), so rare shapes are never compiled."""


class EagerRuns:
    """Counter of the eager runs of each shape before it is compiled; results are bitwise equal."""

    def __init__(self) -> None:
        self._runs: Counter[Hashable] = Counter()

    def should_run_eagerly(self, shape: Hashable) -> bool:
        """Count a run of this shape, and return whether to execute it eagerly."""
        if self._runs[shape] >= EAGER_RUNS:
            return False
        self._runs[shape] += 1
        return True

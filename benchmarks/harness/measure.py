"""Timing: a warm-up, then turns in which each competitor runs once; results are medians and quartiles."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tqdm import tqdm


@dataclass(frozen=True)
class Summary:
    """Median, quartiles and extremes of repeated measurements."""

    median: float
    lower_quartile: float
    upper_quartile: float
    lowest: float
    highest: float
    count: int

    @property
    def spread(self) -> float:
        """Interquartile range over the median: 0.1 means a quiet machine; at 0.5 the median means little."""
        return (self.upper_quartile - self.lower_quartile) / self.median if self.median else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {**asdict(self), "spread": self.spread}


def summarise(values: Iterable[float]) -> Summary:
    """Return median, quartiles and extremes of at least one value."""
    array = np.array(list(values), np.float64)
    if not array.size:
        raise ValueError("nothing was measured")
    lower, middle, upper = (float(value) for value in np.quantile(array, (0.25, 0.5, 0.75)))
    return Summary(middle, lower, upper, float(array.min()), float(array.max()), int(array.size))


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Summary:
    """Return the ratios within each turn, in which a slowdown of both sides cancels out."""
    return summarise(above / below for above, below in zip(numerators, denominators, strict=True))


def take_turns(
    runners: Mapping[str, Callable[[], float]], *, repeats: int, warmup: int = 1, label: str = ""
) -> dict[str, list[float]]:
    """Run all competitors in turn, A B A B …, so that a change of the machine's load affects all of them.

    Args:
        runners: each call runs the competitor once and returns its measurement, usually in seconds.
        repeats: measured turns.
        warmup: turns before them that are not measured.
        label: label of the progress bar, which is shown on terminals only.
    Returns:
        The `repeats` measurements of each competitor, in order.
    """
    measured: dict[str, list[float]] = {name: [] for name in runners}
    total = (warmup + repeats) * len(runners)
    with tqdm(total=total, desc=label or None, leave=False, disable=None) as bar:
        for turn in range(warmup + repeats):
            for name, run in runners.items():
                value = run()
                if turn >= warmup:
                    measured[name].append(value)
                bar.update(1)
    return measured


def seconds_of(work: Callable[[], object], synchronise: Callable[[], object] = lambda: None) -> float:
    """Return the wall-clock seconds of one call; the device is idle before and after."""
    synchronise()
    started = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - started


def calls_per_turn(seconds_of_one: float, *, wanted_seconds: float = 0.2, limit: int = 1000) -> int:
    """Return how often to repeat a short call in a turn, so that clock resolution and overhead do not matter."""
    return max(1, min(limit, int(np.ceil(wanted_seconds / max(seconds_of_one, 1e-9)))))

"""The numbers of `benchmarks.scaling_model` from results of this machine, and how far each measured point is off."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import read_result
from benchmarks.scaling_model import Compute, Link, fit_compute, ring_bytes, ring_seconds, step_seconds
from benchmarks.tables import Table, number

COLUMNS = ("model", "batch", "ranks", "MB sent", "of a ring", "measured ms", "compute ms", "ring ms", "modelled ms",
           "off")  # fmt: skip
_VARIANT = "plugin-graph"
"""Of `graph-bench graph-vs-eager`: what ranks execute, too."""

LOOPBACK = Link(bytes_per_second=1.2e9, latency_s=1e-3)
"""Assumed: no quiet measurement of it exists. Sums of 7.5 and 29 MB alone took two ranks 13 and 24 ms at best in one
trial on a busy machine, which this stands for, and 27 and 140 ms in another on a busier one."""

Network = tuple[str, int]
"""Model and image size."""


@dataclass(frozen=True)
class MeasuredPoint:
    """One row of `graph-bench scaling`.

    Attributes:
        model, imgsz, batch_size, ranks: what was trained, by how many.
        seconds: of a step.
        gradient_bytes: of one rank.
        sent_bytes: by all ranks together in a step.
    """

    model: str
    imgsz: int
    batch_size: int
    ranks: int
    seconds: float
    gradient_bytes: float
    sent_bytes: float

    @property
    def network(self) -> Network:
        """What was trained."""
        return self.model, self.imgsz

    @property
    def images(self) -> float:
        """Of one rank."""
        return self.batch_size / self.ranks


@dataclass(frozen=True)
class Fit:
    """What was found on one machine.

    Attributes:
        compute: of each network, by one process that has all cores.
        one_rank: how many times longer one rank takes, which has the threads of one of several.
        link: between ranks of this host.
    """

    compute: Mapping[Network, Compute]
    one_rank: float
    link: Link

    def compute_seconds(self, point: MeasuredPoint) -> float:
        """Of a rank. N ranks have an Nth of the cores each, so each image takes N times as long as it does alone."""
        crowding = self.one_rank if point.ranks == 1 else point.ranks
        return crowding * self.compute[point.network].seconds(point.images)

    def exchange_seconds(self, point: MeasuredPoint) -> float:
        """Of the gradients."""
        return ring_seconds(point.ranks, point.gradient_bytes, self.link)

    def seconds(self, point: MeasuredPoint) -> float:
        """Of a step."""
        return step_seconds(self.compute_seconds(point), self.exchange_seconds(point))


def read_rows(path: Path, benchmark: str) -> list[dict[str, Any]]:
    """Rows of one result.

    Raises:
        ValueError: it is another benchmark's.
    """
    result = read_result(path)
    if result["benchmark"] != benchmark:
        raise ValueError(f"{path}: a result of graph-bench {result['benchmark']}; needs one of graph-bench {benchmark}")
    return list(result["rows"])


def read_points(path: Path) -> list[MeasuredPoint]:
    """The steps of a result of `graph-bench scaling`."""
    return [
        MeasuredPoint(
            model=row["model"],
            imgsz=row["imgsz"],
            batch_size=row["batch_size"],
            ranks=row["ranks"],
            seconds=row["ms_per_step"] / 1e3,
            gradient_bytes=row["gradient_mb"] * 1e6,
            sent_bytes=row["mb_sent_per_step"] * 1e6,
        )
        for row in read_rows(path, "scaling")
    ]


def read_compute(path: Path) -> dict[Network, Compute]:
    """The line of each network that a result of `graph-bench graph-vs-eager` has in two batch sizes or more."""
    rows: dict[Network, list[tuple[int, float]]] = {}
    for row in read_rows(path, "graph-vs-eager"):
        if row["variant"] == _VARIANT:
            rows.setdefault((row["model"], row["imgsz"]), []).append((row["batch_size"], row["ms_per_step"] / 1e3))
    several = {network: pairs for network, pairs in rows.items() if len({images for images, _ in pairs}) > 1}
    return {
        network: fit_compute([images for images, _ in pairs], [seconds for _, seconds in pairs])
        for network, pairs in several.items()
    }


def fit(compute: Mapping[Network, Compute], points: Sequence[MeasuredPoint], link: Link = LOOPBACK) -> Fit:
    """Adds what one rank takes; of steps of several ranks nothing is fitted.

    Raises:
        ValueError: no point of one rank is of a network that `compute` has.
    """
    factors = [
        point.seconds / compute[point.network].seconds(point.images)
        for point in points
        if point.ranks == 1 and point.network in compute
    ]
    if not factors:
        raise ValueError("no step of one rank is of a network whose compute is known; measure other --points")
    return Fit(compute, float(np.median(factors)), link)


def table(found: Fit, points: Sequence[MeasuredPoint]) -> Table:
    """Each point of a known network beside the model."""
    rows = []
    for point in points:
        if point.network not in found.compute:
            continue
        times = (point.seconds, found.compute_seconds(point), found.exchange_seconds(point), found.seconds(point))
        sizes = (point.sent_bytes, ring_bytes(point.ranks, point.gradient_bytes) * point.ranks)
        rows.append(
            (
                point.model,
                *(str(count) for count in (point.batch_size, point.ranks)),
                *(f"{size / 1e6:.2f}" for size in sizes),
                *(number(seconds * 1e3) for seconds in times),
                f"{found.seconds(point) / point.seconds - 1:+.0%}",
            )
        )
    lines = [
        f"{model} at {px} px {number(found.compute[model, px].fixed_s * 1e3)} ms and "
        f"{number(found.compute[model, px].per_image_s * 1e3)} ms per image"
        for model, px in sorted({point.network for point in points} & found.compute.keys())
    ]
    notes = (
        f"Compute of one process on all cores: {'; '.join(lines)}. One rank alone, on its share of them: "
        f"{found.one_rank:.2f} times as long (fitted).",
        f"Link, assumed: {number(found.link.latency_s * 1e3)} ms per message, "
        f"{number(found.link.bytes_per_second / 1e6)} MB/s.",
    )
    return Table("Measured, ranks on one host, and the model", COLUMNS, tuple(rows), notes)

"""The numbers of `benchmarks.scaling_model` from results of this machine, and how far each measured point is off."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import read_result
from benchmarks.scaling_model import Compute, Link, fit_compute, fit_link, ring_bytes, ring_seconds, step_seconds
from benchmarks.tables import Table, number

COLUMNS = ("model", "batch", "ranks", "MB sent", "of a ring", "measured ms", "compute ms", "ring ms", "modelled ms",
           "off")  # fmt: skip
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
        apart_seconds: of a step of as many processes at once, with their shares of the batch but no exchange.
        sum_seconds: of the sum of the gradients over the ranks, alone.
    """

    model: str
    imgsz: int
    batch_size: int
    ranks: int
    seconds: float
    gradient_bytes: float
    sent_bytes: float
    apart_seconds: float
    sum_seconds: float

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
    """What was found on one machine; no step of several ranks is in it.

    Attributes:
        compute: of each network, by one rank with the threads of one, alone on the host.
        crowding: how many times longer a rank computes with the others beside it.
        link: between ranks of this host.
    """

    compute: Mapping[Network, Compute]
    crowding: float
    link: Link

    def compute_seconds(self, point: MeasuredPoint) -> float:
        """Of a rank."""
        return (self.crowding if point.ranks > 1 else 1.0) * self.compute[point.network].seconds(point.images)

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
            apart_seconds=row["apart_ms"]["median"] / 1e3,
            sum_seconds=row["sum_ms"]["median"] / 1e3,
        )
        for row in read_rows(path, "scaling")
    ]


def fit(points: Sequence[MeasuredPoint]) -> Fit:
    """From steps of one rank, of ranks apart, and from sums of the gradients.

    Raises:
        ValueError: a network lacks steps of one rank in two batch sizes, or sums of two sizes are missing.
    """
    compute = {network: _compute(network, points) for network in {point.network for point in points}}
    several = [point for point in points if point.ranks > 1]
    if len({point.gradient_bytes for point in several}) < 2:
        raise ValueError("--points: has no sums of two sizes over several ranks; measure two networks")
    crowding = [point.apart_seconds / compute[point.network].seconds(point.images) for point in several]
    link = fit_link(
        [point.ranks for point in several],
        [point.gradient_bytes for point in several],
        [point.sum_seconds for point in several],
    )
    return Fit(compute, float(np.median(crowding)), link)


def _compute(network: Network, points: Sequence[MeasuredPoint]) -> Compute:
    alone = [point for point in points if point.network == network and point.ranks == 1]
    if len({point.images for point in alone}) < 2:
        raise ValueError(f"--points: has no steps of one rank in two batch sizes of {network[0]} at {network[1]} px")
    return fit_compute([point.images for point in alone], [point.seconds for point in alone])


def table(found: Fit, points: Sequence[MeasuredPoint]) -> Table:
    """Each point of a known network beside the model."""
    rows = []
    for point in points:
        times = (point.seconds, found.compute_seconds(point), found.exchange_seconds(point), found.seconds(point))
        sizes = (point.sent_bytes, ring_bytes(point.ranks, point.gradient_bytes) * point.ranks)
        rows.append(
            (
                point.model,
                *(str(count) for count in (point.batch_size, point.ranks)),
                *(f"{size / 1e6:.2f}" for size in sizes),
                *(number(seconds * 1e3) for seconds in times),
                _percent(found.seconds(point) / point.seconds - 1),
            )
        )
    lines = [
        f"{model} at {px} px {number(line.fixed_s * 1e3)} ms and {number(line.per_image_s * 1e3)} ms per image"
        for (model, px), line in sorted(found.compute.items())
    ]
    notes = (
        f"Compute of one rank alone, fitted: {'; '.join(lines)}. With the other beside it, from ranks apart: "
        f"{found.crowding:.2f} times as long.",
        f"Link, from sums alone: {number(found.link.latency_s * 1e3)} ms per message, "
        f"{number(found.link.bytes_per_second / 1e6)} MB/s.",
    )
    return Table("Measured, ranks on one host, and the model", COLUMNS, tuple(rows), notes)


def _percent(share: float) -> str:
    """A signed share in whole percent; rounded first, so that no zero is negative."""
    return f"{round(share, 2) + 0.0:+.0%}"

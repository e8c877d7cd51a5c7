"""How long a training step takes on N ranks: all formulas of the model, in one place. Seconds, bytes, images.

A step is compute of the rank's own images, then the exchange of the gradients, one after the other:

    step(N) = max(crowding * (fixed + per_image * images / N) + ring(N, gradients) + sums(N) + agreement(N), data)

    ring(N, bytes) = 2 (N - 1) latency + 2 (N - 1) / N * bytes / bandwidth

The ring is the bandwidth-optimal all-reduce (Patarasuk and Yuan 2009): N - 1 steps that sum, N - 1 that hand round, a
Nth of the bytes in each. Pure NumPy; `benchmarks.scaling_fit` finds the numbers in measurements, and
`benchmarks.scaling_prediction` assumes them for clusters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BACKWARD_SHARE = 2 / 3
"""Of compute: two gradients are computed for one output of the forward pass. What an overlap could hide behind."""


@dataclass(frozen=True)
class Link:
    """What joins ranks.

    Attributes:
        bytes_per_second: that one rank can send while it receives as many.
        latency_s: of one message, however small.
    """

    bytes_per_second: float
    latency_s: float


@dataclass(frozen=True)
class Compute:
    """Forward pass, backward pass and update of one rank.

    Attributes:
        fixed_s: what does not depend on images: launches, the update of all weights.
        per_image_s: of each image.
    """

    fixed_s: float
    per_image_s: float

    def seconds(self, images: float) -> float:
        """Of a rank that has so many images."""
        return self.fixed_s + self.per_image_s * images


def ring_bytes(ranks: int, size: float) -> float:
    """Bytes that each rank sends in an all-reduce of `size` bytes by a ring."""
    return 2 * (ranks - 1) / ranks * size


def ring_seconds(ranks: int, size: float, link: Link) -> float:
    """All-reduce of `size` bytes by a ring."""
    return 2 * (ranks - 1) * link.latency_s + ring_bytes(ranks, size) / link.bytes_per_second


def hierarchical_seconds(hosts: int, per_host: int, size: float, inside: Link, between: Link) -> float:
    """All-reduce in levels: summed within each host, every rank then holds a share, shares summed over the hosts.

    The two halves of the ring within a host (sum, hand round) stand around the one between hosts, in which each of the
    `per_host` ranks sends its own share over its own adapter.
    """
    return ring_seconds(per_host, size, inside) + ring_seconds(hosts, size / per_host, between)


def tree_seconds(ranks: int, latency_s: float) -> float:
    """All-reduce of a few numbers by a tree: up and down again; bytes do not count."""
    return 2 * math.ceil(math.log2(ranks)) * latency_s


def gather_seconds(ranks: int, latency_s: float) -> float:
    """Every rank learns a few numbers of all others by a ring."""
    return (ranks - 1) * latency_s


def step_seconds(compute: float, exchange: float, data: float = 0.0, *, hidden: float = 0.0) -> float:
    """One step.

    Args:
        compute: of the slowest rank.
        exchange: between the ranks.
        data: until the pipeline has the next images; it works beside the step.
        hidden: how much of the exchange happens during compute. Ours sums one vector after the backward pass: nothing.
    """
    return max(compute + max(0.0, exchange - hidden), data)


def fit_compute(images: Sequence[float], seconds: Sequence[float]) -> Compute:
    """The line through measured steps of one rank; relative errors count, neither term is below 0."""
    columns = np.column_stack([np.ones(len(images)), np.asarray(images, np.float64)])
    fixed, per_image = _non_negative(columns, seconds)
    return Compute(fixed, per_image)


def fit_link(ranks: Sequence[int], sizes: Sequence[float], seconds: Sequence[float]) -> Link:
    """The link whose rings of so many ranks sum vectors of so many bytes in these times; relative errors count."""
    messages = 2 * (np.asarray(ranks, np.float64) - 1)
    latency, seconds_per_byte = _non_negative(
        np.column_stack([messages, messages / np.asarray(ranks) * np.asarray(sizes, np.float64)]), seconds
    )
    return Link(bytes_per_second=1 / max(seconds_per_byte, 1e-15), latency_s=latency)


def _non_negative(columns: np.ndarray, seconds: Sequence[float]) -> tuple[float, float]:
    """Least squares of relative errors in two unknowns that are not below 0."""
    target = np.asarray(seconds, np.float64)
    weighted = columns / target[:, np.newaxis]
    ones = np.ones(len(target))
    both = np.linalg.lstsq(weighted, ones, rcond=None)[0]
    if (both >= 0).all():
        return float(both[0]), float(both[1])
    # One of them is 0 then; the better of the two ways.
    alone = [max(0.0, float(column @ ones / (column @ column))) for column in weighted.T]
    errors = [float(np.square(weighted[:, i] * alone[i] - ones).sum()) for i in (0, 1)]
    return (alone[0], 0.0) if errors[0] < errors[1] else (0.0, alone[1])

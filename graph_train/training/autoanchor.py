"""AutoAnchor: check how well anchors fit the boxes of a data set, and fit better ones by k-means and evolution.

Sizes are (n, 2), width and height in px of the training image. The ratio of an anchor and a box is YOLOv5's measure of
fit: the smaller of the width and height ratios, each inverted if above 1. A box can be learnt if a ratio exceeds
1 / `anchor_t`. An `AnchorRandom` draws the same numbers as YOLOv5 does after seeding the global generators of NumPy and
Python.
"""

import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pipelines.data.columns import RowGroups

_LOG = logging.getLogger(__name__)
Sizes = npt.NDArray[np.floating]
GOOD_RECALL = 0.98
"""Best possible recall above which the anchors are kept."""
GENERATIONS = 1000
_MUTATION_CHANCE, _MUTATION_SIGMA = 0.9, 0.1
_SMALLEST_ANCHOR_PX = 2.0
_CHUNK_BOXES = 65536


@dataclass(frozen=True)
class AnchorRandom:
    """The two generators that YOLOv5 draws from."""

    numpy: np.random.RandomState
    python: random.Random

    @classmethod
    def from_seed(cls, seed: int) -> "AnchorRandom":
        """Seed both generators, NumPy's with its legacy algorithm; 0 <= seed < 2**32."""
        return cls(np.random.RandomState(seed), random.Random(seed))


@dataclass(frozen=True)
class AnchorFit:
    """How a set of anchors fits the boxes."""

    best_possible_recall: float
    """Fraction of the boxes that fit at least one anchor."""
    anchors_per_target: float
    """Mean number of anchors that fit a box."""


@dataclass(frozen=True)
class Evolution:
    """Evolved anchors; `accepted` and `trace` (the best fitness so far) have one entry per generation."""

    anchors_px: Sizes
    fitness: float
    accepted: list[bool]
    trace: list[float]


@dataclass(frozen=True)
class AnchorDecision:
    """Result of the check; `anchors_px` (levels, anchors, 2) are the anchors to train with."""

    anchors_px: npt.NDArray[np.float32]
    before: AnchorFit
    after: AnchorFit
    recomputed: bool
    replaced: bool


def box_sizes_px(
    image_sizes: npt.ArrayLike, labels: Sequence[Sizes], image_px: int, scale: npt.ArrayLike = 1.0
) -> npt.NDArray[np.float64]:
    """Return the sizes (boxes, 2) of all boxes when the long side of each image is scaled to `image_px`.

    Args:
        image_sizes: (images, 2), width and height in px.
        labels: per image (n, 5) [class, cx, cy, w, h], normalised.
        scale: additional scale of each image, (images, 1) or one number.
    """
    sizes = np.asarray(image_sizes, np.float64)
    scaled = image_px * sizes / sizes.max(axis=1, keepdims=True) * scale
    groups = RowGroups.of(labels, columns=5)
    return groups.rows[:, 3:5] * np.repeat(scaled, groups.counts, axis=0)


def _ratios(sizes_px: Sizes, anchors_px: Sizes) -> npt.NDArray[np.float32]:
    """Return the ratio of every box and every anchor, (boxes, anchors)."""
    boxes, anchors = np.asarray(sizes_px, np.float32), np.asarray(anchors_px, np.float32)
    with np.errstate(divide="ignore"):  # a box of zero width has ratio 0: min(0, 1/0)
        width = boxes[:, :1] / anchors[:, 0]
        worst = np.minimum(width, 1 / width)
        height = boxes[:, 1:] / anchors[:, 1]
        np.minimum(worst, height, out=worst)
        np.minimum(worst, 1 / height, out=worst)
    return worst


def _chunks(sizes_px: Sizes) -> Iterator[Sizes]:
    # In chunks, so that the intermediate arrays of a million boxes stay in the CPU's cache.
    for start in range(0, len(sizes_px), _CHUNK_BOXES):
        yield sizes_px[start : start + _CHUNK_BOXES]


def anchor_fit(sizes_px: Sizes, anchors_px: Sizes, threshold: float) -> AnchorFit:
    """Return how well anchors (n, 2) in px fit the boxes; `threshold` is the hyper-parameter `anchor_t`.

    Raises:
        ValueError: there are no boxes.
    """
    if not len(sizes_px):
        raise ValueError("no labels to fit anchors to; check the labels, or use --noautoanchor")
    recalled = pairs = 0
    for boxes in _chunks(sizes_px):
        fits = _ratios(boxes, anchors_px) > np.float32(1 / threshold)
        recalled += int(fits.any(axis=1).sum())
        pairs += int(fits.sum())
    return AnchorFit(recalled / len(sizes_px), pairs / len(sizes_px))


def best_possible_recall(sizes_px: Sizes, anchors_px: Sizes, threshold: float) -> float:
    """Return the fraction of the boxes whose best ratio exceeds 1 / `threshold`."""
    return anchor_fit(sizes_px, anchors_px, threshold).best_possible_recall


def anchor_fitness(sizes_px: Sizes, anchors_px: Sizes, threshold: float) -> float:
    """Return the objective of evolution: the mean over the boxes of the best ratio, or 0 if that is below threshold."""
    total = 0.0
    for boxes in _chunks(sizes_px):
        best = _ratios(boxes, anchors_px).max(axis=1)
        total += float(best[best > np.float32(1 / threshold)].sum(dtype=np.float64))
    return total / len(sizes_px)


def large_enough(sizes_px: Sizes) -> npt.NDArray[np.float32]:
    """Return the boxes that are at least 2 px wide or high; anchors are fitted to these."""
    return sizes_px[(sizes_px >= _SMALLEST_ANCHOR_PX).any(axis=1)].astype(np.float32)


def by_area(anchors_px: Sizes) -> Sizes:
    """Sort anchors (n, 2) by area, smallest first."""
    return anchors_px[np.argsort(anchors_px.prod(axis=1))]


def kmeans_anchors(sizes_px: npt.NDArray[np.float32], count: int, image_px: int, rng: AnchorRandom) -> Sizes:
    """Return cluster centres (count, 2) of box sizes, sorted by area: k-means on whitened sizes.

    With fewer distinct boxes than anchors, warn and return random sizes, as YOLOv5 does.
    """
    spread = sizes_px.std(axis=0)
    centres: Sizes = np.empty((0, 2))
    if count <= len(sizes_px) and (spread > 0).all():
        from scipy.cluster.vq import kmeans  # slow to import, and not needed if the anchors are kept

        centres = kmeans(sizes_px / spread, count, iter=30, seed=rng.numpy)[0] * spread
    if len(centres) != count:
        _LOG.warning("AutoAnchor: too few distinct boxes for %d anchors; starting from random sizes", count)
        centres = np.sort(rng.numpy.random_sample(count * 2)).reshape(count, 2) * float(image_px)
    return by_area(centres)


def anchor_mutation_factors(shape: tuple[int, ...], generations: int, rng: AnchorRandom) -> Iterator[Sizes]:
    """Yield one array of factors in [0.3, 3] per generation; a draw in which all factors are 1 is repeated."""
    for _ in range(generations):
        factors = np.ones(shape)
        while (factors == 1).all():
            chosen = rng.numpy.random_sample(shape) < _MUTATION_CHANCE
            strength = rng.python.random()
            noise = rng.numpy.randn(*shape)
            factors = (chosen * strength * noise * _MUTATION_SIGMA + 1).clip(0.3, 3.0)
        yield factors


def evolve_anchors(
    start_px: Sizes, sizes_px: npt.NDArray[np.float32], threshold: float, factors: Iterable[Sizes]
) -> Evolution:
    """Multiply the anchors by each array of factors in turn and keep improvements; sort the result by area."""
    anchors, fitness = start_px, anchor_fitness(sizes_px, start_px, threshold)
    accepted, trace = [], []
    for factor in factors:
        candidate = (anchors * factor).clip(min=_SMALLEST_ANCHOR_PX)
        candidate_fitness = anchor_fitness(sizes_px, candidate, threshold)
        accepted.append(candidate_fitness > fitness)
        if accepted[-1]:
            anchors, fitness = candidate, candidate_fitness
        trace.append(fitness)
    return Evolution(by_area(anchors), fitness, accepted, trace)


def fit_anchors(
    sizes_px: Sizes,
    count: int,
    *,
    image_px: int,
    threshold: float,
    rng: AnchorRandom,
    generations: int = GENERATIONS,
) -> npt.NDArray[np.float32]:
    """Fit anchors (count, 2) in px to boxes (n, 2) by k-means and evolution; smallest first.

    Raises:
        ValueError: no box is at least 2 px wide or high.
    """
    usable = large_enough(sizes_px)
    if not len(usable):
        raise ValueError(
            f"all {len(sizes_px)} boxes are smaller than {_SMALLEST_ANCHOR_PX:g} px at image size {image_px}; use a "
            "larger --imgsz, or --noautoanchor"
        )
    start = kmeans_anchors(usable, count, image_px, rng)
    factors = tqdm(
        anchor_mutation_factors(start.shape, generations, rng),
        total=generations,
        desc="Evolving anchors",
        disable=None,  # no bar where stderr is a file or a pipe
    )
    return evolve_anchors(start, usable, threshold, factors).anchors_px.astype(np.float32)


def in_stride_order(anchors_px: npt.NDArray[np.float32], strides: Sequence[float]) -> npt.NDArray[np.float32]:
    """Order anchors (levels, anchors, 2) so that small anchors are on the level with the small stride."""
    areas = anchors_px.prod(axis=-1).mean(axis=-1)
    growth, stride_growth = np.sign(areas[-1] - areas[0]), np.sign(strides[-1] - strides[0])
    return anchors_px[::-1].copy() if growth and growth != stride_growth else anchors_px


def check_anchors(
    image_sizes: npt.ArrayLike,
    labels: Sequence[Sizes],
    anchors_px: npt.NDArray[np.floating],
    strides: Sequence[float],
    *,
    image_px: int,
    threshold: float,
    rng: AnchorRandom,
) -> AnchorDecision:
    """Keep anchors that fit well; else fit new ones, and use them only if their best possible recall is higher.

    Args:
        image_sizes, labels: as for `box_sizes_px`.
        anchors_px: the model's anchors, (levels, anchors, 2).
        strides: stride of each level in px.
        threshold: the hyper-parameter `anchor_t`.
    """
    images = len(np.asarray(image_sizes))
    scale = rng.numpy.uniform(0.9, 1.1, size=(images, 1))
    scaled = box_sizes_px(image_sizes, labels, image_px, scale).astype(np.float32)
    current = np.asarray(anchors_px, np.float32)
    before = anchor_fit(scaled, current.reshape(-1, 2), threshold)
    if before.best_possible_recall > GOOD_RECALL:
        return AnchorDecision(current, before, before, recomputed=False, replaced=False)
    sizes = box_sizes_px(image_sizes, labels, image_px)
    new = fit_anchors(sizes, current.size // 2, image_px=image_px, threshold=threshold, rng=rng)
    after = anchor_fit(scaled, new, threshold)
    if after.best_possible_recall <= before.best_possible_recall:
        return AnchorDecision(current, before, before, recomputed=True, replaced=False)
    return AnchorDecision(in_stride_order(new.reshape(current.shape), strides), before, after, True, True)

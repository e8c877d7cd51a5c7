"""Sharded validation: the result on every rank is the same as with a single process.

Each rank processes its rows of every batch. At the end, the results are gathered and sorted in the order of the images,
so that ties in confidence are broken as with a single process.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_train.metrics.average_precision import IOU_THRESHOLDS
from graph_train.ranks.exchange import Exchange
from pipelines.shard import Shard

Array = npt.NDArray[Any]
Match = tuple[Array, Array, Array]
"""Detections of an image: correct at each of `IOU_THRESHOLDS` (n, t) bool, confidence (n,), class (n,)."""


@dataclass(frozen=True)
class BatchSharding:
    """How batches are sharded over the ranks.

    Attributes:
        exchange: the collectives.
        images_of: returns the number of images of a batch over all ranks.
    """

    exchange: Exchange
    images_of: Callable[[int], int]

    def owns_rows(self, batch: int) -> bool:
        """Return whether this rank's rows of a batch are its own, not copies of another rank's."""
        return Shard(self.exchange.rank, self.exchange.ranks).owns_rows(self.images_of(batch))


@dataclass(frozen=True)
class MatchedImages:
    """Matched detections per image.

    Attributes:
        batches: batch index of each image.
        matched: matched detections of each image.
        label_classes: label classes of each image.
    """

    batches: Sequence[int]
    matched: Sequence[Match]
    label_classes: Sequence[Array]


def gather_matched_images(local: MatchedImages, exchange: Exchange) -> MatchedImages:
    """Gather the images of all ranks, in the order of the images with a single process."""
    nothing: Match = (np.zeros((0, len(IOU_THRESHOLDS)), bool), np.zeros(0, np.float32), np.zeros(0, np.float32))
    correct, confidence, category = (np.concatenate(column) for column in zip(nothing, *local.matched, strict=True))
    sizes = [
        (number, len(match[1]), len(labels))
        for number, match, labels in zip(local.batches, local.matched, local.label_classes, strict=True)
    ]
    columns = (
        np.array(sizes, np.int64).reshape(-1, 3),
        correct,
        confidence.astype(np.float64),
        category.astype(np.float64),
        np.concatenate([np.zeros(0, np.int64), *local.label_classes]),
    )
    by_rank = [exchange.all_gather_arrays(column) for column in columns]
    images: list[tuple[int, int, Match, Array]] = []
    for rank, (of_image, *values) in enumerate(zip(*by_rank, strict=True)):
        detections, labels = (np.cumsum(of_image[:, part]) for part in (1, 2))
        for row, (number, detection_count, label_count) in enumerate(of_image):
            first, first_label = detections[row] - detection_count, labels[row] - label_count
            match = (
                values[0][first : first + detection_count],
                values[1][first : first + detection_count].astype(confidence.dtype),
                values[2][first : first + detection_count].astype(category.dtype),
            )
            images.append((int(number), rank, match, values[3][first_label : first_label + label_count]))
    images.sort(key=lambda image: image[:2])  # stable: rows of one rank keep their order
    return MatchedImages([image[0] for image in images], [image[2] for image in images], [image[3] for image in images])

"""A validation whose batches are divided among ranks: every rank ends with what one process would have found.

Each rank keeps what it found in its rows of every batch; at the end all exchange it and put it back into the order of
the images, so that also ties in confidence are broken as in one process.
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
"""Of one image: (n, t) bool correct at each of `IOU_THRESHOLDS`, (n,) confidence, (n,) class."""


@dataclass(frozen=True)
class Sharing:
    """The division of the images among the ranks.

    Attributes:
        exchange: with the other ranks.
        images_of: images of a batch over all ranks, by its number.
    """

    exchange: Exchange
    images_of: Callable[[int], int]

    def counts(self, batch: int) -> bool:
        """Return whether no other rank has this rank's rows of the batch."""
        return Shard(self.exchange.rank, self.exchange.ranks).counts_here(self.images_of(batch))


@dataclass(frozen=True)
class Findings:
    """The matched detections, image by image.

    Attributes:
        batches: number of the batch of each image.
        matched: detections of each image.
        label_classes: classes of the labels of each image.
    """

    batches: Sequence[int]
    matched: Sequence[Match]
    label_classes: Sequence[Array]


def joined(own: Findings, exchange: Exchange) -> Findings:
    """Return the findings of all ranks, in the order of the images in one process."""
    nothing: Match = (np.zeros((0, len(IOU_THRESHOLDS)), bool), np.zeros(0, np.float32), np.zeros(0, np.float32))
    correct, confidence, category = (np.concatenate(column) for column in zip(nothing, *own.matched, strict=True))
    sizes = [
        (number, len(match[1]), len(labels))
        for number, match, labels in zip(own.batches, own.matched, own.label_classes, strict=True)
    ]
    columns = (
        np.array(sizes, np.int64).reshape(-1, 3),
        correct,
        confidence.astype(np.float64),
        category.astype(np.float64),
        np.concatenate([np.zeros(0, np.int64), *own.label_classes]),
    )
    by_rank = [exchange.all_gather_arrays(column) for column in columns]
    images: list[tuple[int, int, Match, Array]] = []
    for rank, (of_image, *values) in enumerate(zip(*by_rank, strict=True)):
        detections, labels = (np.cumsum(of_image[:, part]) for part in (1, 2))
        for row, (number, found, wanted) in enumerate(of_image):
            at, label_at = detections[row] - found, labels[row] - wanted
            match = (
                values[0][at : at + found],
                values[1][at : at + found].astype(confidence.dtype),
                values[2][at : at + found].astype(category.dtype),
            )
            images.append((int(number), rank, match, values[3][label_at : label_at + wanted]))
    images.sort(key=lambda image: image[:2])  # stable: rows of one rank keep their order
    return Findings([image[0] for image in images], [image[2] for image in images], [image[3] for image in images])

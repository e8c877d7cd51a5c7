"""COCO evaluation: detections in COCO results format, evaluated if the data set has COCO annotations."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_train.ranks.exchange import Exchange
from graph_train.validation.coco_results import (
    CocoIds,
    CocoMetrics,
    Entry,
    default_ids,
    evaluate_results,
    find_annotations,
    ids_of_annotations,
    result_entries,
    write_results,
)
from graph_train.validation.measuring import ImageDetections
from kernels.host.paths import printable
from pipelines.data.coco_json import is_coco_file
from pipelines.data.dataset import is_coco_2017
from pipelines.data.index import ImageIndex

LOG = logging.getLogger("graph_train")


class DetectionCollector:
    """Collector of the detections of a validation.

    Args:
        paths: the images of the split.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._number = {str(path): number for number, path in enumerate(paths)}
        self._rows: list[npt.NDArray[np.float64]] = [np.zeros((0, 7))]

    def add(self, image: ImageDetections) -> None:
        """Add the detections in an image."""
        number = np.full((len(image.detections), 1), self._number[str(image.path)], np.float64)
        self._rows.append(np.concatenate((number, image.detections), axis=1))

    def gathered(self, exchange: Exchange) -> npt.NDArray[np.float64]:
        """Return the detections of all ranks, sorted by image.

        Returns:
            (n, 7) image index, x1, y1, x2, y2 in px, confidence, class.
        """
        rows = np.concatenate(exchange.all_gather_arrays(np.concatenate(self._rows)))
        return rows[np.argsort(rows[:, 0], kind="stable")]


@dataclass(frozen=True)
class CocoSplit:
    """The COCO ids and annotations of a split.

    Attributes:
        paths: the images of the split.
        ids: ids of images and classes.
        annotations: COCO annotations of the split, or None if it cannot be evaluated.
        unevaluated: the reason why it cannot be evaluated.
    """

    paths: Sequence[Path]
    ids: CocoIds
    annotations: Path | None
    unevaluated: str = ""

    @classmethod
    def of(cls, sources: Sequence[Path], index: ImageIndex, *, single_cls: bool) -> "CocoSplit":
        """Find ids and annotations of the split indexed from `sources`.

        Raises:
            ValueError: the annotations do not match the data set, or two images have the same id.
            OSError: the annotations cannot be read.
        """
        annotations = next((source for source in sources if is_coco_file(source)), find_annotations(index.paths[0]))
        if annotations is not None and not single_cls:
            ids = ids_of_annotations(annotations, index.class_names).for_images(index.paths)
            return cls(index.paths, ids, annotations)
        reason = f"there is no annotations/instances_{index.paths[0].parent.name}.json next to the images"
        if single_cls:
            reason = "the annotations do not match --single-cls"
        ids = default_ids(index.class_names, is_coco=is_coco_2017(sources)).for_images(index.paths)
        return cls(index.paths, ids, None, reason)

    def entries(self, rows: npt.NDArray[np.float64]) -> list[Entry]:
        """Convert the rows of `DetectionCollector.gathered` to entries of a results file."""
        borders = np.searchsorted(rows[:, 0], np.arange(len(self.paths) + 1))
        entries: list[Entry] = []
        for number, (first, last) in enumerate(pairwise(borders)):
            if last > first:
                image_id = self.ids.image_id(self.paths[number])
                entries += result_entries(rows[first:last, 1:], image_id, self.ids.category_ids)
        return entries

    def image_ids(self) -> list[Any]:
        """Return the id of each image."""
        return [self.ids.image_id(path) for path in self.paths]


def write_and_evaluate(file: Path, rows: npt.NDArray[np.float64], split: CocoSplit) -> CocoMetrics | None:
    """Write a COCO results file, evaluate it if possible, and log the result.

    Args:
        file: the results file.
        rows: the result of `DetectionCollector.gathered`.
        split: the split that the detections belong to.
    """
    write_results(file, split.entries(rows))
    LOG.info("%d detections written to %s", len(rows), printable(file))
    if split.annotations is None or not len(rows):
        LOG.info("COCO evaluation skipped: %s", split.unevaluated or "no detections above --conf-thres")
        return None
    metrics = evaluate_results(split.annotations, file, split.image_ids())
    LOG.info("COCO metrics with %s:\n%s", printable(split.annotations), metrics.table)
    return metrics

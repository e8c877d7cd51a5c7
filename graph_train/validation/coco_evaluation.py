"""A validation in COCO's terms: its detections as a result file, evaluated where the data set has annotations."""

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
    entries_of,
    evaluate_results,
    find_annotations,
    ids_of_annotations,
    write_results,
)
from graph_train.validation.measuring import ImageDetections
from pipelines.data.coco_json import is_coco_file
from pipelines.data.dataset import is_coco_2017
from pipelines.data.index import ImageIndex

LOG = logging.getLogger("graph_train")


class DetectionCollector:
    """The detections of a validation, image by image.

    Args:
        paths: images of the split, in its order.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._number = {str(path): number for number, path in enumerate(paths)}
        self._rows: list[npt.NDArray[np.float64]] = [np.zeros((0, 7))]

    def add(self, image: ImageDetections) -> None:
        """Add what was found in one image."""
        number = np.full((len(image.detections), 1), self._number[str(image.path)], np.float64)
        self._rows.append(np.concatenate((number, image.detections), axis=1))

    def gathered(self, exchange: Exchange) -> npt.NDArray[np.float64]:
        """Return (n, 7) image number, x1, y1, x2, y2 in px, confidence, class: of all ranks, in the order of images."""
        rows = np.concatenate(exchange.all_gather_arrays(np.concatenate(self._rows)))
        return rows[np.argsort(rows[:, 0], kind="stable")]


@dataclass(frozen=True)
class CocoSplit:
    """A split of a data set, as COCO result files name its images and classes.

    Attributes:
        paths: its images.
        ids: of images and classes.
        annotations: COCO annotations of the split; None where there are none of its classes.
        unevaluated: why there are none.
    """

    paths: Sequence[Path]
    ids: CocoIds
    annotations: Path | None
    unevaluated: str = ""

    @classmethod
    def of(cls, sources: Sequence[Path], index: ImageIndex, *, single_cls: bool) -> "CocoSplit":
        """Return the split that was indexed from these sources.

        Raises:
            ValueError: annotations and data set do not belong together, or two images would have one id.
            OSError: the annotations cannot be read.
        """
        annotations = next((source for source in sources if is_coco_file(source)), find_annotations(index.paths[0]))
        if annotations is not None and not single_cls:
            ids = ids_of_annotations(annotations, index.class_names).for_images(index.paths)
            return cls(index.paths, ids, annotations)
        why = f"there is no annotations/instances_{index.paths[0].parent.name}.json beside the images"
        if single_cls:
            why = "with --single-cls its classes are not ours"
        ids = default_ids(index.class_names, is_coco=is_coco_2017(sources)).for_images(index.paths)
        return cls(index.paths, ids, None, why)

    def entries(self, rows: npt.NDArray[np.float64]) -> list[Entry]:
        """Return the entries of a result file; `rows` as of `DetectionCollector.gathered`."""
        borders = np.searchsorted(rows[:, 0], np.arange(len(self.paths) + 1))
        entries: list[Entry] = []
        for number, (first, last) in enumerate(pairwise(borders)):
            if last > first:
                image_id = self.ids.image_id(self.paths[number])
                entries += entries_of(rows[first:last, 1:], image_id, self.ids.category_ids)
        return entries

    def image_ids(self) -> list[Any]:
        """Return one per image."""
        return [self.ids.image_id(path) for path in self.paths]


def write_and_evaluate(file: Path, rows: npt.NDArray[np.float64], split: CocoSplit) -> CocoMetrics | None:
    """Write a COCO result file and evaluate it, if that is possible; says what came of it.

    Args:
        file: the result file.
        rows: as of `DetectionCollector.gathered`.
        split: what the rows were found in.
    """
    write_results(file, split.entries(rows))
    LOG.info("%d detections written to %s", len(rows), file)
    if split.annotations is None or not len(rows):
        LOG.info("Not evaluated as COCO does: %s", split.unevaluated or "nothing was found above --conf-thres")
        return None
    metrics = evaluate_results(split.annotations, file, split.image_ids())
    LOG.info("COCO metrics with %s:\n%s", split.annotations, metrics.table)
    return metrics

"""Confusion matrix of a detector: which class was found where a class stands, background being one of them."""

from typing import Any

import numpy as np
import numpy.typing as npt

from graph_train.metrics.average_precision import pairwise_iou

Array = npt.NDArray[Any]


class ConfusionMatrix:
    """A confusion matrix, counted over images.

    `counts` (nc + 1, nc + 1) int64: row = predicted class, column = true class; the last row holds labels that no
    detection met, the last column detections that met no label.
    """

    def __init__(self, num_classes: int, *, conf_thres: float = 0.25, iou_thres: float = 0.45) -> None:
        self.num_classes = num_classes
        self.conf_thres = conf_thres
        self.iou_thres = iou_thres
        self.counts: npt.NDArray[np.int64] = np.zeros((num_classes + 1, num_classes + 1), np.int64)

    def add(self, detections: Array, labels: Array) -> None:
        """Count one image.

        Pairs of detection and label with IoU > iou_thres, of whatever class, are joined from the greatest overlap down:
        each detection keeps its best label, then each label its best detection. An image in which no pair is joined
        adds its labels as missed but not its detections as spurious: YOLOv5 counts so, and matrices stay comparable.

        Args:
            detections: (n, 6) x1, y1, x2, y2, confidence, class; those with confidence > conf_thres count.
            labels: (m, 5) class, x1, y1, x2, y2.
        """
        found = detections[detections[:, 4] > np.float32(self.conf_thres)]
        found_class, true_class = found[:, 5].astype(np.int64), labels[:, 0].astype(np.int64)
        label, detection = _best_pairs(pairwise_iou(labels[:, 1:5], found[:, :4]), self.iou_thres)
        np.add.at(self.counts, (found_class[detection], true_class[label]), 1)
        missed = np.delete(true_class, label)
        np.add.at(self.counts, (np.full_like(missed, self.num_classes), missed), 1)
        if not len(label):
            return
        spurious = np.delete(found_class, detection)
        np.add.at(self.counts, (spurious, np.full_like(spurious, self.num_classes)), 1)

    def true_and_false_positives(self) -> tuple[Array, Array]:
        """Return (nc,) correct detections and (nc,) wrong ones per predicted class."""
        correct = self.counts.diagonal()
        return correct[:-1], (self.counts.sum(axis=1) - correct)[:-1]


def _best_pairs(iou: Array, threshold: float) -> tuple[Array, Array]:
    """Return the label and detection numbers of the joined pairs, from (labels, detections) overlaps."""
    label, detection = np.nonzero(iou > threshold)
    order = np.argsort(-iou[label, detection], kind="stable")
    label, detection = label[order], detection[order]
    _, first = np.unique(detection, return_index=True)
    first.sort()  # back into the order of overlap
    label, detection = label[first], detection[first]
    _, first = np.unique(label, return_index=True)
    return label[first], detection[first]

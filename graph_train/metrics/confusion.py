"""Confusion matrix of a detector, with background as an additional class."""

from typing import Any

import numpy as np
import numpy.typing as npt

from graph_train.metrics.average_precision import pairwise_iou

Array = npt.NDArray[Any]


class ConfusionMatrix:
    """A confusion matrix, accumulated over images.

    `counts` is (nc + 1, nc + 1) int64: rows are predicted and columns true classes. The last row counts labels without
    a detection, and the last column detections without a label.
    """

    def __init__(self, num_classes: int, *, conf_thres: float = 0.25, iou_thres: float = 0.45) -> None:
        self.num_classes = num_classes
        self.conf_thres = conf_thres
        self.iou_thres = iou_thres
        self.counts: npt.NDArray[np.int64] = np.zeros((num_classes + 1, num_classes + 1), np.int64)

    def add(self, detections: Array, labels: Array) -> None:
        """Count one image.

        Detections and labels of any class with IoU > iou_thres are matched: each detection keeps the label with the
        highest IoU, then each label the detection with the highest IoU. As in YOLOv5, an image without any match adds
        its labels as missed, but not its detections as false positives.

        Args:
            detections: (n, 6) x1, y1, x2, y2, confidence, class; those with confidence <= conf_thres are ignored.
            labels: (m, 5) class, x1, y1, x2, y2.
        """
        confident = detections[detections[:, 4] > np.float32(self.conf_thres)]
        predicted_class, true_class = confident[:, 5].astype(np.int64), labels[:, 0].astype(np.int64)
        label, detection = _match(pairwise_iou(labels[:, 1:5], confident[:, :4]), self.iou_thres)
        np.add.at(self.counts, (predicted_class[detection], true_class[label]), 1)
        missed = np.delete(true_class, label)
        np.add.at(self.counts, (np.full_like(missed, self.num_classes), missed), 1)
        if not len(label):
            return
        unmatched = np.delete(predicted_class, detection)
        np.add.at(self.counts, (unmatched, np.full_like(unmatched, self.num_classes)), 1)


def _match(iou: Array, threshold: float) -> tuple[Array, Array]:
    """Return the label and detection indices of the matched pairs, given IoUs (labels, detections)."""
    label, detection = np.nonzero(iou > threshold)
    order = np.argsort(-iou[label, detection], kind="stable")
    label, detection = label[order], detection[order]
    _, first = np.unique(detection, return_index=True)
    first.sort()  # back into the order of IoU
    label, detection = label[first], detection[first]
    _, first = np.unique(label, return_index=True)
    return label[first], detection[first]

"""Precision, recall and average precision of detections, as in YOLOv5.

Pure functions of NumPy arrays; `graph_train.validation` applies them to a data set.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10, dtype=np.float32)
"""(10,) the IoU thresholds of mAP50-95; the first is that of mAP50."""

_CURVE_POINTS = 1000
_TINY = 1e-16


def pairwise_iou(first_xyxy: Array, second_xyxy: Array, *, eps: float = 1e-7) -> Array:
    """Return the IoU (a, b) of all pairs of boxes x1, y1, x2, y2, (a, 4) and (b, 4), in the same unit.

    With `eps`, the IoU of two boxes without area is 0.
    """
    a, b = first_xyxy[:, None], second_xyxy[None]
    sides = np.clip(np.minimum(a[..., 2:4], b[..., 2:4]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    overlap = sides[..., 0] * sides[..., 1]
    return overlap / (_area(a) + _area(b) - overlap + eps)


def _area(boxes_xyxy: Array) -> Array:
    return (boxes_xyxy[..., 2] - boxes_xyxy[..., 0]) * (boxes_xyxy[..., 3] - boxes_xyxy[..., 1])


def match_detections(detections: Array, labels: Array, iou_thresholds: Array = IOU_THRESHOLDS) -> Array:
    """Return which detections of an image are correct at each IoU threshold.

    Each detection is assigned to the label of its class with the largest IoU (on a tie, the last such label). If
    several detections are assigned to a label, the first of them is correct and the others are false positives.

    Args:
        detections: (n, 6) x1, y1, x2, y2, confidence, class; highest confidence first.
        labels: (m, 5) class, x1, y1, x2, y2 in the same unit.
        iou_thresholds: (t,); a match needs IoU >= threshold.

    Returns:
        (n, t) bool.
    """
    correct = np.zeros((len(detections), len(iou_thresholds)), bool)
    if not len(detections) or not len(labels):
        return correct
    iou = pairwise_iou(detections[:, :4], labels[:, 1:5])
    iou[detections[:, 5:6] != labels[None, :, 0]] = -1.0
    best_label = len(labels) - 1 - iou[:, ::-1].argmax(axis=1)
    best_iou = iou[np.arange(len(iou)), best_label]
    for level, threshold in enumerate(iou_thresholds):
        candidates = np.flatnonzero(best_iou >= threshold)
        _, first = np.unique(best_label[candidates], return_index=True)
        correct[candidates[first], level] = True
    return correct


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of the classes that have labels, one row per class, sorted by class number.

    `precision`, `recall`, `f1`, `true_positives` and `false_positives` (c,) are those at IoU 0.5 and at `confidence`,
    the threshold with the highest smoothed mean F1. `ap` is (c, t), per IoU threshold. The curves are (c, 1000):
    precision, recall and F1 at IoU 0.5 over `confidence_axis`, and precision over `recall_axis`, both (1000,), 0 to 1.
    """

    classes: Array
    labels: Array
    true_positives: Array
    false_positives: Array
    precision: Array
    recall: Array
    f1: Array
    ap: Array
    confidence: float
    confidence_axis: Array
    precision_curve: Array
    recall_curve: Array
    f1_curve: Array
    recall_axis: Array
    precision_at_recall: Array

    @property
    def ap50(self) -> Array:
        """(c,) average precision at the first IoU threshold."""
        return self.ap[:, 0]

    @property
    def ap50_95(self) -> Array:
        """(c,) average precision, averaged over the IoU thresholds."""
        return self.ap.mean(axis=1)

    def means(self) -> tuple[float, float, float, float]:
        """Return precision, recall, mAP50 and mAP50-95, averaged over the classes; zeros if there are no classes."""
        if not len(self.classes):
            return 0.0, 0.0, 0.0, 0.0
        columns = (self.precision, self.recall, self.ap50, self.ap50_95)
        return tuple(float(column.mean()) for column in columns)  # type: ignore[return-value]

    def maps(self, num_classes: int) -> Array:
        """Return mAP50-95 per class, (num_classes,); a class without labels gets the mean, as in YOLOv5."""
        values = np.full(num_classes, self.means()[3])
        values[self.classes] = self.ap50_95
        return values


def metrics_per_class(correct: Array, confidence: Array, predicted_class: Array, label_class: Array) -> ClassMetrics:
    """Compute the metrics of each class from the matched detections of a whole data set.

    Args:
        correct: (n, t) bool, from `match_detections`.
        confidence, predicted_class: (n,); rows of equal confidence keep their order.
        label_class: (m,) class of every label. Detections of classes without labels are ignored.
    """
    order = np.argsort(-confidence, kind="stable")
    correct, confidence, predicted_class = correct[order], confidence[order], predicted_class[order]
    classes, labels = np.unique(label_class.astype(np.int64), return_counts=True)
    axis = np.linspace(0, 1, _CURVE_POINTS)
    ap = np.zeros((len(classes), correct.shape[1]))
    precision, recall, at_recall = (np.zeros((len(classes), _CURVE_POINTS)) for _ in range(3))
    for row, (category, count) in enumerate(zip(classes, labels, strict=True)):
        of_class = predicted_class == category
        if not of_class.any():
            continue
        true = correct[of_class].cumsum(axis=0)
        recalls, precisions = true / (count + _TINY), true / np.arange(1, len(true) + 1)[:, None]
        # `interp` needs increasing x values, but confidence decreases along the rows.
        recall[row] = np.interp(-axis, -confidence[of_class], recalls[:, 0], left=0)
        precision[row] = np.interp(-axis, -confidence[of_class], precisions[:, 0], left=1)
        for level in range(correct.shape[1]):
            ap[row, level], curve = average_precision(recalls[:, level], precisions[:, level])
            if level == 0:
                at_recall[row] = np.interp(axis, *curve)
    curves = {"precision": precision, "recall": recall, "at_recall": at_recall}
    return _at_best_confidence(classes, labels, ap, axis=axis, **curves)


def _at_best_confidence(
    classes: Array, labels: Array, ap: Array, *, axis: Array, precision: Array, recall: Array, at_recall: Array
) -> ClassMetrics:
    f1 = 2 * precision * recall / (precision + recall + _TINY)
    best = int(smooth(f1.mean(axis=0), 0.1).argmax()) if len(classes) else 0
    true = (recall[:, best] * labels).round()
    return ClassMetrics(
        classes=classes,
        labels=labels,
        true_positives=true,
        false_positives=(true / (precision[:, best] + _TINY) - true).round(),
        precision=precision[:, best],
        recall=recall[:, best],
        f1=f1[:, best],
        ap=ap,
        confidence=float(axis[best]),
        confidence_axis=axis,
        precision_curve=precision,
        recall_curve=recall,
        f1_curve=f1,
        recall_axis=axis,
        precision_at_recall=at_recall,
    )


def average_precision(recall: Array, precision: Array) -> tuple[float, tuple[Array, Array]]:
    """Return the area under a precision-recall curve, interpolated at 101 recalls, and its monotone envelope.

    The curve is extended to recall 0 (precision 1) and recall 1 (precision 0), and the precision at each recall is
    replaced by the highest precision at this or any greater recall.

    Args:
        recall, precision: (n,), with increasing recall.

    Returns:
        The area, and (recall (n + 2,), precision (n + 2,)).
    """
    recalls = np.concatenate(([0.0], recall, [1.0]))
    envelope = np.maximum.accumulate(np.concatenate(([1.0], precision, [0.0]))[::-1])[::-1]
    samples = np.linspace(0, 1, 101)
    return float(np.trapz(np.interp(samples, recalls, envelope), samples)), (recalls, envelope)


def smooth(values: Array, fraction: float) -> Array:
    """Apply a box filter of odd width, about `fraction` of the (n,) values; the ends are padded by repetition."""
    width = round(len(values) * fraction * 2) // 2 + 1
    half = np.ones(width // 2)
    padded = np.concatenate((half * values[0], values, half * values[-1]))
    return np.convolve(padded, np.ones(width) / width, mode="valid")


def fitness(results: Array) -> Array:
    """Return 0.1 mAP50 + 0.9 mAP50-95 of rows (..., 4+) [P, R, mAP50, mAP50-95, …]; the best weights maximise it."""
    return (np.asarray(results)[..., :4] * [0.0, 0.0, 0.1, 0.9]).sum(axis=-1)


def best_row(results: Array) -> int:
    """Return the epoch with the highest fitness; on a tie the last one, as during training.

    Args:
        results: (n, 4+), as in `fitness`. Rows of zeros (no validation) rank lowest, then rows with NaN.
    """
    rows = np.asarray(results, np.float64)
    values = np.where(rows.any(axis=1), np.nan_to_num(fitness(rows), nan=-1.0), -2.0)
    return len(values) - 1 - int(values[::-1].argmax())

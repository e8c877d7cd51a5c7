"""Non-maximum suppression: confidence filter, class choice and suppression of decoded predictions, as in YOLOv5.

Unlike in YOLOv5, there is no time limit, so the detections do not depend on the speed of the machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_train.detection.suppression import largest_float32_not_above, suppress
from pipelines.augmentation.boxes import cxcywh_to_xyxy

Array = npt.NDArray[Any]
Tensor = Any
"""`oneflow.Tensor`, see `kernels.runtime`."""

CLASS_SHIFT_PX = np.float32(7680)
"""Offset per class number, which keeps boxes of different classes apart. As in YOLOv5, the rounding of the shifted
corners (1/16 px for class 77) decides overlaps close to the threshold."""


@dataclass(frozen=True)
class NmsSettings:
    """Settings of NMS.

    Attributes:
        classes: keep only these class numbers; None keeps all.
        agnostic: suppress boxes across classes.
        multi_label: give each box all classes above the threshold instead of the best one.
        max_candidates: maximum number of boxes, of highest confidence, before suppression.
        max_det: maximum number of detections per image.
    """

    conf_thres: float = 0.25
    iou_thres: float = 0.45
    classes: Sequence[int] | None = None
    agnostic: bool = False
    multi_label: bool = False
    max_det: int = 300
    max_candidates: int = 30000

    def __post_init__(self) -> None:
        for name in ("conf_thres", "iou_thres"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}={getattr(self, name)}: must be between 0 and 1")
        for name in ("max_det", "max_candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")


def non_max_suppression(
    predictions: Array | Tensor, settings: NmsSettings, *, known_labels: Sequence[Array] | None = None
) -> list[Array]:
    """Return the detections of each image, sorted by decreasing confidence; ties keep the order of the predictions.

    Args:
        predictions: (B, N, 5 + nc) floating: cx, cy, w, h in px, objectness, class confidences, after the sigmoid. A
            float32 tensor is processed on its device by the plugin's kernel.
        known_labels: per image (m, 5) class, cx, cy, w, h in px: labels to add to the candidates with confidence 1
            (autolabelling), or None.

    Returns:
        B arrays (k, 6) float32, k <= max_det: x1, y1, x2, y2 in px, confidence, class.

    Raises:
        ValueError: the predictions have the wrong shape, or the number of images differs.
    """
    if predictions.ndim != 3 or predictions.shape[2] < 6:
        raise ValueError(f"predictions {predictions.shape}: expected (images, boxes, 5 + classes)")
    if known_labels is not None and len(known_labels) != len(predictions):
        raise ValueError(f"known labels of {len(known_labels)} images, but predictions of {len(predictions)}")
    if not isinstance(predictions, np.ndarray):
        if known_labels is None:
            return _suppress_on_device(predictions, settings)
        predictions = predictions.numpy()
    confidence = np.float32(settings.conf_thres)
    detections = []
    for image, every_row in enumerate(predictions):
        rows = np.asarray(every_row[every_row[:, 4] > confidence], np.float32)
        if known_labels is not None and len(known_labels[image]):
            rows = np.concatenate((rows, _as_predictions(known_labels[image], rows.shape[1])))
        detections.append(_suppress_one_image(rows, settings))
    return detections


def _suppress_on_device(predictions: Tensor, settings: NmsSettings) -> list[Array]:
    # Imported here, because NMS of arrays does not need OneFlow.
    from kernels.ops.detections.function import suppress_detections

    detections, counts = suppress_detections(
        predictions,
        confidence=settings.conf_thres,
        iou=float(largest_float32_not_above(settings.iou_thres)),
        class_shift=float(CLASS_SHIFT_PX),
        multi_label=settings.multi_label,
        agnostic=settings.agnostic,
        max_det=settings.max_det,
        max_candidates=settings.max_candidates,
        classes=settings.classes,
    )
    rows: Array = detections.numpy()
    return [rows[image, :count].copy() for image, count in enumerate(counts.numpy())]


def _as_predictions(labels: Array, columns: int) -> Array:
    rows = np.zeros((len(labels), columns), np.float32)
    rows[:, :4] = labels[:, 1:5]
    rows[:, 4] = 1.0
    rows[np.arange(len(labels)), 5 + labels[:, 0].astype(np.int64)] = 1.0
    return rows


def _suppress_one_image(rows: Array, settings: NmsSettings) -> Array:
    row, category, confidence = _class_choices(rows, settings)
    if settings.classes is not None:
        selected = np.isin(category, np.asarray(settings.classes, np.int64))
        row, category, confidence = row[selected], category[selected], confidence[selected]
    if len(row) > settings.max_candidates:
        best = _indices_of_largest(confidence, settings.max_candidates)
        row, category, confidence = row[best], category[best], confidence[best]
    boxes: Array = cxcywh_to_xyxy(rows[row, :4])
    shifted: Array = boxes if settings.agnostic else boxes + CLASS_SHIFT_PX * category.astype(np.float32)[:, None]
    kept = suppress(shifted, confidence, settings.iou_thres, limit=settings.max_det)
    columns = (boxes[kept], confidence[kept, None], category[kept, None].astype(np.float32))
    return np.concatenate(columns, axis=1)


def _indices_of_largest(values: Array, count: int) -> Array:
    """Return the sorted indices of the `count` largest values, the first ones on ties, in linear time."""
    least = np.partition(values, len(values) - count)[len(values) - count]
    above, equal = np.flatnonzero(values > least), np.flatnonzero(values == least)
    return np.sort(np.concatenate((above, equal[: count - len(above)])))


def _class_choices(rows: Array, settings: NmsSettings) -> tuple[Array, Array, Array]:
    """Return row index, class and confidence (m,) of each candidate, in the order of the rows."""
    confidences = rows[:, 5:] * rows[:, 4:5]
    above = confidences > np.float32(settings.conf_thres)
    if settings.multi_label and confidences.shape[1] > 1:
        row, category = np.nonzero(above)
    else:
        row = np.flatnonzero(above.any(axis=1))
        category = confidences[row].argmax(axis=1)
    return row, category, confidences[row, category]

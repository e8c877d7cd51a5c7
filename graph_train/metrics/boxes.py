"""Overlap of boxes on the host, for matching detections with labels."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def pairwise_iou(first_xyxy: Array, second_xyxy: Array, *, eps: float = 1e-7) -> Array:
    """IoU of every pair: corners (a, 4) and (b, 4) in one unit to (a, b); `eps` gives two boxes without area 0."""
    a, b = first_xyxy[:, None], second_xyxy[None]
    sides = np.clip(np.minimum(a[..., 2:4], b[..., 2:4]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    overlap = sides[..., 0] * sides[..., 1]
    return overlap / (_area(a) + _area(b) - overlap + eps)


def _area(boxes_xyxy: Array) -> Array:
    return (boxes_xyxy[..., 2] - boxes_xyxy[..., 0]) * (boxes_xyxy[..., 3] - boxes_xyxy[..., 1])

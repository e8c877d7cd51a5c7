"""Boxes and polygons in NumPy: conversion, clipping, and filtering after augmentation.

Box orders: `cxcywh` is centre and size, `xyxy` two corners; suffix `n` means normalised to the image, otherwise px. All
functions keep the dtype of their input, return new arrays and accept empty arrays.
"""

import numpy as np


def cxcywh_to_xyxy(boxes: np.ndarray) -> np.ndarray:
    """Convert (n, 4) centre form to (n, 4) corner form, in any one unit."""
    half = boxes[:, 2:] / 2
    return np.concatenate((boxes[:, :2] - half, boxes[:, :2] + half), axis=1)


def xyxy_to_cxcywh(boxes: np.ndarray) -> np.ndarray:
    """Convert (n, 4) corner form to (n, 4) centre form, in any one unit."""
    return np.concatenate(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), axis=1)


def denormalise(
    boxes_cxcywhn: np.ndarray, *, width: float, height: float, offset_xy: tuple[float, float]
) -> np.ndarray:
    """Convert (n, 4) normalised centre form to (n, 4) corners in px of a canvas.

    Args:
        boxes_cxcywhn: normalised to an image.
        width, height: size of the image on the canvas in px.
        offset_xy: position of its top left corner on the canvas; may be negative.
    """
    scale = np.array((width, height, width, height), boxes_cxcywhn.dtype)
    shift = np.array(offset_xy * 2, boxes_cxcywhn.dtype)
    return cxcywh_to_xyxy(boxes_cxcywhn) * scale + shift


def normalise(boxes_xyxy: np.ndarray, *, width: float, height: float, clip_margin: float | None = None) -> np.ndarray:
    """Convert (n, 4) corners in px to (n, 4) normalised centre form.

    Args:
        boxes_xyxy: in px of an image.
        width, height: size of that image in px.
        clip_margin: if given, corners are first limited to [0, width - margin] x [0, height - margin].
    """
    if clip_margin is not None:
        boxes_xyxy = clip(boxes_xyxy, width=width - clip_margin, height=height - clip_margin)
    return xyxy_to_cxcywh(boxes_xyxy) / np.array((width, height, width, height), boxes_xyxy.dtype)


def clip(boxes_xyxy: np.ndarray, *, width: float, height: float) -> np.ndarray:
    """Limit (n, 4) corners to [0, width] x [0, height]."""
    limit = np.array((width, height, width, height), boxes_xyxy.dtype)
    return np.clip(boxes_xyxy, np.zeros_like(limit), limit)


def surviving_boxes(
    before_xyxy: np.ndarray,
    after_xyxy: np.ndarray,
    *,
    min_side_px: float = 2.0,
    max_aspect: float = 100.0,
    min_area_share: float = 0.1,
) -> np.ndarray:
    """Return which boxes to keep after an augmentation.

    Args:
        before_xyxy: (n, 4) corners before it, already multiplied by its scale.
        after_xyxy: (n, 4) corners after it, clipped to the image.
        min_side_px: lower bound of both sides, exclusive.
        max_aspect: the longer side over the shorter one must be below this.
        min_area_share: area after over area before must be above this.
    Returns:
        (n,) bool.
    Source: YOLOv5's candidate rule, thresholds included.
    """
    tiny = 1e-16  # avoids division by 0; such a box fails the first test anyway
    before, after = before_xyxy[:, 2:] - before_xyxy[:, :2], after_xyxy[:, 2:] - after_xyxy[:, :2]
    aspect = np.maximum(after[:, 0] / (after[:, 1] + tiny), after[:, 1] / (after[:, 0] + tiny))
    share = after.prod(axis=1) / (before.prod(axis=1) + tiny)
    return (after > min_side_px).all(axis=1) & (share > min_area_share) & (aspect < max_aspect)


def resample_polygon(points: np.ndarray, count: int = 1000) -> np.ndarray:
    """Resample a closed polygon with corners (m, 2) to points (count, 2), evenly spaced by corner index.

    The last point equals the first.
    """
    closed = np.concatenate((points, points[:1]))
    corner = np.arange(len(closed))
    at = np.linspace(0, len(closed) - 1, count)
    return np.stack([np.interp(at, corner, closed[:, axis]) for axis in range(2)], axis=1).astype(points.dtype)


def polygon_box(points: np.ndarray, *, width: float, height: float) -> np.ndarray:
    """Return the bounding box (4,) of those points (m, 2) that lie inside the image; zeros if there are none."""
    inside = ((points >= 0) & (points <= (width, height))).all(axis=1)
    # YOLOv5 tests the x values themselves for "any", so points that all lie on the left edge count as none.
    if not points[inside, 0].any():
        return np.zeros(4, points.dtype)
    return np.concatenate((points[inside].min(axis=0), points[inside].max(axis=0)))

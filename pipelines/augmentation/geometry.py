"""The random affine or perspective transform of an augmentation, and its effect on boxes and polygons.

Coordinates are continuous: pixel (i, j) covers [j, j + 1) x [i, i + 1), so a box moves exactly as its pixels do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.augmentation import boxes


@dataclass(frozen=True)
class RandomTransform:
    """Parameters of a random transform.

    Attributes:
        perspective_x, perspective_y: entries of the last matrix row, per px.
        angle_deg: counter-clockwise rotation as seen on the screen.
        scale: factor about the canvas centre.
        shear_x_deg, shear_y_deg: shear angles.
        translate_x_px, translate_y_px: position of the canvas centre in the output.
    """

    perspective_x: float = 0.0
    perspective_y: float = 0.0
    angle_deg: float = 0.0
    scale: float = 1.0
    shear_x_deg: float = 0.0
    shear_y_deg: float = 0.0
    translate_x_px: float = 0.0
    translate_y_px: float = 0.0


def view_matrix(transform: RandomTransform, *, canvas_wh: tuple[int, int]) -> np.ndarray:
    """Return the transform from canvas px to output px, (3, 3) float64.

    The order is that of YOLOv5's random perspective: centre, perspective, rotation and scale, shear, translation.
    """
    centre = np.eye(3)
    centre[:2, 2] = -canvas_wh[0] / 2, -canvas_wh[1] / 2
    perspective = np.eye(3)
    perspective[2, :2] = transform.perspective_x, transform.perspective_y
    angle = math.radians(transform.angle_deg)
    cosine, sine = transform.scale * math.cos(angle), transform.scale * math.sin(angle)
    turn = np.array(((cosine, sine, 0.0), (-sine, cosine, 0.0), (0.0, 0.0, 1.0)))
    shear = np.eye(3)
    shear[0, 1], shear[1, 0] = (
        math.tan(math.radians(transform.shear_x_deg)),
        math.tan(math.radians(transform.shear_y_deg)),
    )
    translate = np.eye(3)
    translate[:2, 2] = transform.translate_x_px, transform.translate_y_px
    return translate @ shear @ turn @ perspective @ centre


def is_axis_aligned(matrix: np.ndarray) -> bool:
    """Return whether the transform only scales and translates."""
    return bool(matrix[0, 1] == 0 and matrix[1, 0] == 0 and matrix[2, 0] == 0 and matrix[2, 1] == 0)


def map_points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map (n, 2) points; with a perspective row each is divided by its own third coordinate."""
    mapped = points @ matrix[:2, :2].T + matrix[:2, 2]
    if matrix[2, 0] == 0 and matrix[2, 1] == 0:
        return mapped
    return mapped / (points @ matrix[2, :2] + matrix[2, 2])[:, None]


def map_boxes(matrix: np.ndarray, boxes_xyxy: np.ndarray, *, output_wh: tuple[int, int]) -> np.ndarray:
    """Return (n, 4) upright boxes around the four mapped corners of each box, clipped to the output; float64."""
    corners = boxes_xyxy[:, (0, 1, 2, 3, 0, 3, 2, 1)].astype(np.float64).reshape(-1, 2)
    mapped = map_points(matrix, corners).reshape(-1, 4, 2)
    bounds = np.concatenate((mapped.min(axis=1), mapped.max(axis=1)), axis=1)
    return boxes.clip(bounds, width=output_wh[0], height=output_wh[1])


def map_labels(
    matrix: np.ndarray,
    boxes_xyxy: np.ndarray,
    polygons: Sequence[np.ndarray],
    *,
    scale: float,
    output_wh: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes of an augmented image, and which of them to keep.

    Args:
        matrix: (3, 3) canvas to output.
        boxes_xyxy: (n, 4) in px of the canvas.
        polygons: in px of the canvas, one per box; if there are n and any has a point other than the origin, boxes are
            recomputed around the mapped polygons, which is tighter, and kept with a smaller visible fraction.
        scale: the random scale, to compute the fraction of the area that is left.
        output_wh: size of the output in px.
    Returns:
        (n, 4) float64 corners, clipped; (n,) bool.
    """
    if len(boxes_xyxy) and len(polygons) == len(boxes_xyxy) and any(p.any() for p in polygons):
        mapped = [map_points(matrix, boxes.resample_polygon(np.asarray(p, np.float64))) for p in polygons]
        after = np.stack([boxes.polygon_box(p, width=output_wh[0], height=output_wh[1]) for p in mapped])
        share = 0.01
    else:
        after, share = map_boxes(matrix, boxes_xyxy, output_wh=output_wh), 0.1
    return after, boxes.surviving_boxes(boxes_xyxy * scale, after, min_area_share=share)

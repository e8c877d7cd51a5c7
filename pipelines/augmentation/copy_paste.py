"""Copy-paste augmentation: paste outlined objects at their mirrored positions on the same canvas."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_HIDDEN_SHARE = 0.3
"""A pasted box may cover at most this fraction of any other box."""


@dataclass(frozen=True)
class Pasted:
    """A pasted object.

    Attributes:
        label: index of its label among those of the canvas.
        polygon: (m, 2) px, its outline after pasting; its pixels come from the mirrored canvas.
    """

    label: int
    polygon: np.ndarray


def choose_pasted(
    rng: np.random.Generator, labels: np.ndarray, polygons: Sequence[np.ndarray], *, share: float, width: int
) -> tuple[Pasted, ...]:
    """Draw the objects to paste, without those that would cover too much of another.

    Args:
        rng: the generator; one draw of numbers without repetition is taken.
        labels: (n, 5) [class, x1, y1, x2, y2] in px of the canvas.
        polygons: n outlines in px of the canvas; if there are not n, nothing is pasted.
        share: fraction of the objects that are tried, 0 ... 1.
        width: width of the canvas in px.
    Source: YOLOv5's copy-paste.
    """
    if not len(labels) or len(polygons) != len(labels):
        return ()
    present, chosen = labels[:, 1:], []
    for number in rng.permutation(len(labels))[: round(share * len(labels))]:
        box = mirrored_boxes(present[number : number + 1], width=width)
        if _covered_shares(box[0], present).max() < MAX_HIDDEN_SHARE:
            present = np.concatenate((present, box))
            chosen.append(Pasted(int(number), mirrored_points(polygons[number], width=width)))
    return tuple(chosen)


def mirrored_boxes(boxes_xyxy: np.ndarray, *, width: int) -> np.ndarray:
    """Mirror (n, 4) corners left to right with their canvas."""
    return np.stack((width - boxes_xyxy[:, 2], boxes_xyxy[:, 1], width - boxes_xyxy[:, 0], boxes_xyxy[:, 3]), axis=1)


def mirrored_points(points: np.ndarray, *, width: int) -> np.ndarray:
    """Mirror (m, 2) points left to right with their canvas."""
    return np.stack((width - points[:, 0], points[:, 1]), axis=1)


def _covered_shares(box_xyxy: np.ndarray, others_xyxy: np.ndarray) -> np.ndarray:
    low, high = np.maximum(others_xyxy[:, :2], box_xyxy[:2]), np.minimum(others_xyxy[:, 2:], box_xyxy[2:])
    areas = (others_xyxy[:, 2:] - others_xyxy[:, :2]).prod(axis=1)
    return np.clip(high - low, 0, None).prod(axis=1) / (areas + 1e-7)

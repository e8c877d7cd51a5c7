"""Greedy non-maximum suppression in NumPy, exact and fast enough for validation on a CPU.

Boxes are visited in order of decreasing score, and a box is dropped if it overlaps a box kept before too much. Instead
of one Python iteration per box, a block of the sorted boxes is compared at once: first with all boxes kept so far, then
within itself, where the greedy result is the fixed point of "kept unless a kept earlier box overlaps it".
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

_BLOCK = 256  # a (256, 256) float32 matrix stays in the second-level cache


def suppress(boxes_xyxy: Floats, scores: Floats, iou_threshold: float, *, limit: int | None = None) -> Indices:
    """Return the boxes kept by greedy non-maximum suppression.

    Args:
        boxes_xyxy: (n, 4) float32, x1, y1, x2, y2 in any unit.
        scores: (n,) float32; ties keep the order of the rows.
        iou_threshold: a box is dropped if its IoU with a kept one is strictly greater (computed in float32). Boxes
            without area overlap nothing.
        limit: maximum number of boxes to keep.

    Returns:
        (k,) int64 indices of the kept boxes, sorted by decreasing score.

    Raises:
        ValueError: the shapes do not match, or the threshold is outside [0, 1].
    """
    if boxes_xyxy.ndim != 2 or boxes_xyxy.shape[1] != 4 or scores.shape != (len(boxes_xyxy),):
        raise ValueError(f"boxes {boxes_xyxy.shape} and scores {scores.shape}: expected (n, 4) and (n,)")
    if not 0.0 <= iou_threshold <= 1.0:
        raise ValueError(f"IoU threshold {iou_threshold}: must be between 0 and 1")
    order = np.argsort(-scores, kind="stable")
    boxes = np.ascontiguousarray(boxes_xyxy[order], np.float32)
    threshold = largest_float32_not_above(iou_threshold)
    limit = len(order) if limit is None else limit
    kept = np.empty(0, np.int64)
    for start in range(0, len(order), _BLOCK):
        if len(kept) >= limit:
            break
        block = np.arange(start, min(start + _BLOCK, len(order)))
        if len(kept):
            block = block[~_covers(boxes, kept, block, threshold).any(axis=0)]
        kept = np.concatenate((kept, block[_greedy(_covers(boxes, block, block, threshold))]))
    return order[kept[:limit]]


def largest_float32_not_above(value: float) -> np.float32:
    """Return the float32 r such that f > value if and only if f > r, for every float32 f."""
    rounded = np.float32(value)
    return rounded if float(rounded) <= value else np.nextafter(rounded, np.float32(-np.inf))


def _covers(boxes: Floats, above: Indices, below: Indices, threshold: np.float32) -> npt.NDArray[np.bool_]:
    """Return (a, b) bool: whether box a of `above` overlaps box b of `below` too much; both index sorted boxes."""
    x1, y1, x2, y2 = (boxes[above, side][:, None] for side in range(4))
    u1, v1, u2, v2 = (boxes[below, side][None, :] for side in range(4))
    width = np.minimum(x2, u2)
    width -= np.maximum(x1, u1)
    height = np.minimum(y2, v2)
    height -= np.maximum(y1, v1)
    overlap = np.maximum(width, 0, out=width)
    overlap *= np.maximum(height, 0, out=height)
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - overlap
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 is NaN, which exceeds no threshold
        iou = np.divide(overlap, union, out=overlap)
        return iou > threshold


def _greedy(covers: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return which of n sorted boxes the greedy rule keeps, (n,) bool, given which box covers which, (n, n) bool.

    Each iteration settles at least one more link of every chain of overlapping boxes, so at most n are needed; real
    images need three or four.
    """
    earlier = np.triu(covers, k=1)
    keep = ~earlier.any(axis=0)
    while True:
        # `keep` alternates between a subset and a superset of the result until both are equal.
        following = ~earlier[keep].any(axis=0)
        if np.array_equal(following, keep):
            return keep
        keep = following

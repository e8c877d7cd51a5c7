"""Greedy non-maximum suppression in NumPy, exact and fast enough for validation on a CPU.

Boxes are visited from the highest score down and a box goes when a box kept before it overlaps it too much. Instead of
one Python step per box, blocks of the sorted boxes are compared at once: first with everything kept so far, then among
themselves, where the greedy rule is the fixed point of "kept unless a kept earlier box covers it".
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

_BLOCK = 256  # a (256, 256) float32 matrix stays in the second-level cache


def suppress(
    boxes_xyxy: Floats,
    scores: Floats,
    iou_threshold: float,
    *,
    limit: int | None = None,
) -> Indices:
    """Choose the boxes that survive greedy non-maximum suppression.

    Args:
        boxes_xyxy: (n, 4) float32, x1, y1, x2, y2 in any one unit.
        scores: (n,) float32. Equal scores are visited in the order of their rows.
        iou_threshold: a box goes when its IoU with a kept one is strictly greater; IoU in float32. Boxes without area
            overlap nothing.
        limit: stop once this many boxes are kept; the result is the beginning of the unlimited one.

    Returns:
        (k,) int64 row numbers of the kept boxes, highest score first.

    Raises:
        ValueError: shapes do not fit, or the threshold lies outside [0, 1].
    """
    if boxes_xyxy.ndim != 2 or boxes_xyxy.shape[1] != 4 or scores.shape != (len(boxes_xyxy),):
        raise ValueError(f"boxes {boxes_xyxy.shape} and scores {scores.shape}: expected (n, 4) and (n,)")
    if not 0.0 <= iou_threshold <= 1.0:
        raise ValueError(f"IoU threshold {iou_threshold}: must lie between 0 and 1")
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
    """Return the number r such that f > value exactly if f > r, for every float32 f."""
    rounded = np.float32(value)
    return rounded if float(rounded) <= value else np.nextafter(rounded, np.float32(-np.inf))


def _covers(boxes: Floats, above: Indices, below: Indices, threshold: np.float32) -> npt.NDArray[np.bool_]:
    """Return (a, b) bool: row a of `above` would suppress row b of `below`, both being row numbers of sorted boxes."""
    x1, y1, x2, y2 = (boxes[above, side][:, None] for side in range(4))
    u1, v1, u2, v2 = (boxes[below, side][None, :] for side in range(4))
    width = np.minimum(x2, u2)
    width -= np.maximum(x1, u1)
    height = np.minimum(y2, v2)
    height -= np.maximum(y1, v1)
    overlap = np.maximum(width, 0, out=width)
    overlap *= np.maximum(height, 0, out=height)
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - overlap
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 is NaN, which is not greater than any threshold
        iou = np.divide(overlap, union, out=overlap)
        return iou > threshold


def _greedy(covers: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return (n,) bool: which of n sorted boxes the greedy rule keeps; (n, n): which would suppress which.

    Each round settles at least one more link of every chain of boxes that suppress each other, so n rounds suffice;
    real images need three or four.
    """
    earlier = np.triu(covers, k=1)
    keep = ~earlier.any(axis=0)
    while True:
        # `keep` alternates between a subset and a superset of the answer until both meet.
        following = ~earlier[keep].any(axis=0)
        if np.array_equal(following, keep):
            return keep
        keep = following

"""Cases of box overlap and its gradient, decoding and suppression."""

import numpy as np

from tests.gpu.base import Launched, blocks, random_numbers, starter
from tests.gpu.devices import Device
from tests.gpu.layouts import constant, structure

_IOU, _DETECTIONS = "ops/bbox_iou/launch.h", "ops/detections/launch.h"
IOU, GIOU, DIOU, CIOU = range(4)
_EPS = 1e-7
_STEP = 1e-6
"""Step of finite differences in float64."""


def _sides(boxes: np.ndarray, centre_form: bool) -> tuple[np.ndarray, ...]:
    a, b, c, d = boxes.astype(np.float64).T
    return (a - c / 2, b - d / 2, a + c / 2, b + d / 2, c, d) if centre_form else (a, b, c, d, c - a, d - b + _EPS)


def _aspect(one: tuple[np.ndarray, ...], other: tuple[np.ndarray, ...]) -> np.ndarray:
    turn = np.arctan(other[4] / other[5]) - np.arctan(one[4] / one[5])
    return 4 / np.pi**2 * turn**2


def overlap(
    box1: np.ndarray, box2: np.ndarray, kind: int, centre_form: bool, alpha: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return IoU, GIoU, DIoU or CIoU of (pairs, 4) boxes in float64, and CIoU's aspect weight (`alpha`, if given)."""
    one, other = _sides(box1, centre_form), _sides(box2, centre_form)
    width = (np.minimum(one[2], other[2]) - np.maximum(one[0], other[0])).clip(0)
    height = (np.minimum(one[3], other[3]) - np.maximum(one[1], other[1])).clip(0)
    union = one[4] * one[5] + other[4] * other[5] - width * height + _EPS
    iou = width * height / union
    hull_width = np.maximum(one[2], other[2]) - np.minimum(one[0], other[0])
    hull_height = np.maximum(one[3], other[3]) - np.minimum(one[1], other[1])
    aspect = _aspect(one, other)
    if alpha is None:
        alpha = aspect / (1 - iou + aspect + _EPS)
    if kind == IOU:
        return iou, alpha
    if kind == GIOU:
        hull = hull_width * hull_height + _EPS
        return iou - (hull - union) / hull, alpha
    across, down = other[0] + other[2] - one[0] - one[2], other[1] + other[3] - one[1] - one[3]
    distance = (across**2 + down**2) / 4 / (hull_width**2 + hull_height**2 + _EPS)
    return iou - distance - (aspect * alpha if kind == CIOU else 0), alpha


def _pairs(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes that overlap, and some that do not; valid in both forms."""
    generator = np.random.default_rng(0)
    near = generator.uniform(0, 8, (2, number, 2))
    boxes = np.concatenate([near, near + generator.uniform(0.5, 6, (2, number, 2))], -1).astype(np.float32)
    return boxes[0], boxes[1]


def box_iou(device: Device, gradient: bool, pairs: int = 1000) -> Launched:
    """Compute all four kinds of IoU in both box forms; gradients against differences in float64."""
    compared, threads = [], constant(_IOU, "kBoxThreads")
    box1, box2 = _pairs(pairs)
    upstream = random_numbers(pairs, seed=1)
    out = np.zeros((pairs, 4) if gradient else pairs, np.float32)
    for kind, centre_form in ((kind, form) for kind in range(4) for form in (False, True)):
        args = structure(_IOU, "BoxIouArgs")()
        args.box1, args.box2, args.grad = device.put(box1), device.put(box2), device.put(upstream)
        args.out1, args.out2, args.pairs = device.put(out), device.put(out), pairs
        args.eps, args.centre_form, args.kind = _EPS, centre_form, kind
        start = starter(device, "bbox_iou_grad" if gradient else "bbox_iou", blocks(pairs, threads), threads, args)
        if not gradient:
            compared.append((device.get(args.out1, out), overlap(box1, box2, kind, centre_form)[0]))
            continue
        for number, address in enumerate((args.out1, args.out2)):
            want = _differences((box1, box2), number, (kind, centre_form)) * upstream[:, None]
            compared.append((device.get(address, out), want))
    return Launched(tuple(compared), 1e-4, 1e-5, start, 3 * box1.nbytes)


def _differences(boxes: tuple[np.ndarray, np.ndarray], which: int, form: tuple[int, bool]) -> np.ndarray:
    """Return the gradient of the overlap with respect to one of the boxes, with a constant aspect weight."""
    alpha = overlap(*boxes, *form)[1]
    columns = []
    for side in range(4):
        moved = []
        for step in (_STEP, -_STEP):
            shifted = [one.astype(np.float64) for one in boxes]
            shifted[which][:, side] += step
            moved.append(overlap(shifted[0], shifted[1], *form, alpha)[0])
        columns.append((moved[0] - moved[1]) / (2 * _STEP))
    return np.stack(columns, -1)


_LEVELS = ((8, 10, 8), (4, 5, 16), (2, 3, 32))
"""Rows, columns and stride of each level."""


def decode_maps(
    device: Device, images: int = 2, classes: int = 4, levels: tuple[tuple[int, int, int], ...] = _LEVELS
) -> Launched:
    """Decode three levels of different shapes."""
    outputs, anchors, first, parts = 5 + classes, 3, 0, []
    args = structure(_DETECTIONS, "DecodeArgs")()
    for index, (rows, columns, stride) in enumerate(levels):
        level_map = random_numbers(images, rows, columns, anchors * outputs, seed=index) * 3
        sides = np.random.default_rng(index).uniform(1, 5, (anchors, 2)).astype(np.float32)
        level = structure(_DETECTIONS, "DecodedLevel")
        args.levels[index] = level(device.put(level_map), device.put(sides), rows, columns, first, stride)
        first += anchors * rows * columns
        score = 1 / (1 + np.exp(-level_map.astype(np.float64))).reshape(images, rows, columns, anchors, outputs)
        cells = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1)[:, :, None]
        xy = (score[..., :2] * 2 + cells - 0.5) * stride
        wh = (score[..., 2:4] * 2) ** 2 * sides * stride
        whole = np.concatenate([xy, wh, score[..., 4:]], -1).transpose(0, 3, 1, 2, 4)
        parts.append(whole.reshape(images, -1, outputs))
    want = np.concatenate(parts, 1).astype(np.float32)
    args.out, args.images, args.predictions = device.put(np.zeros_like(want)), images, first
    args.anchors, args.outputs, args.level_count = anchors, outputs, 3
    threads = constant(_DETECTIONS, "kDecodeThreads")
    start = starter(device, "decode", blocks(want.size, threads), threads, args)
    return Launched(((device.get(args.out, want), want),), 2e-6, 1e-4, start, 2 * want.nbytes)


_LIMITS = ((0, 30000, 300), (1, 30000, 300), (1, 100, 20))
"""Whether all classes are candidates, maximum number of candidates, maximum number of detections."""


def suppress(
    device: Device,
    images: int = 2,
    boxes: int = 1200,
    classes: int = 3,
    limits: tuple[tuple[int, int, int], ...] = _LIMITS,
) -> Launched:
    """Suppress by best class or all classes, with all candidates or the best ones; detections must be identical."""
    generator, compared = np.random.default_rng(0), []
    rows = np.empty((images, boxes, 5 + classes), np.float32)
    rows[..., :2], rows[..., 2:4] = generator.uniform(0, 300, (images, boxes, 2)), 40
    rows[..., 2:4] += generator.uniform(-20, 20, (images, boxes, 2))
    rows[..., 4:] = generator.uniform(0, 1, (images, boxes, 1 + classes))
    for multi_label, max_candidates, max_detections in limits:
        capacity = 1
        while capacity < min(boxes * classes, max_candidates):
            capacity *= 2
        detections, counts = np.ones((images, max_detections, 6), np.float32), np.zeros(images, np.int32)
        args = structure(_DETECTIONS, "SuppressArgs")()
        settings = structure(_DETECTIONS, "SuppressionSettings")
        args.settings = settings(0.25, 0.45, 7680, classes, multi_label, 0, max_candidates, max_detections, None)
        args.predictions, args.boxes, args.capacity = device.put(rows), boxes, capacity
        args.keys = device.put(np.zeros((images, capacity), np.uint64))
        args.kept = device.put(np.zeros((images, max_detections, 4), np.float32))
        args.detections, args.counts = device.put(detections), device.put(counts)
        start = starter(device, "suppress", (images, 1, 1), constant(_DETECTIONS, "kSuppressThreads"), args)
        found = [_suppressed(image, bool(multi_label), max_candidates, max_detections) for image in rows]
        want = np.zeros_like(detections)
        for image, kept in zip(want, found, strict=True):
            image[: len(kept)] = kept
        compared.append((device.get(args.detections, detections), want))
        compared.append((device.get(args.counts, counts), np.array([len(kept) for kept in found])))
    return Launched(tuple(compared), 0, 0, start, rows.nbytes)


def _suppressed(rows: np.ndarray, multi_label: bool, max_candidates: int, max_detections: int) -> np.ndarray:
    """Return the detections of one image, suppressed one by one in float32."""
    scores = rows[:, 5:] * rows[:, 4:5]
    chosen = np.ones_like(scores, bool)
    if not multi_label:
        chosen = np.arange(scores.shape[1]) == scores.argmax(1)[:, None]
    box, category = np.nonzero(chosen & (scores > np.float32(0.25)) & (rows[:, 4:5] > np.float32(0.25)))
    order = np.argsort(-scores[box, category], kind="stable")[:max_candidates]
    half = rows[:, 2:4] / np.float32(2)
    corners = np.concatenate([rows[:, :2] - half, rows[:, :2] + half], 1)
    kept, found = np.empty((0, 4), np.float32), []
    for at, of in zip(box[order], category[order], strict=True):
        placed = corners[at] + np.float32(7680) * np.float32(of)
        if len(kept) < max_detections and not _covers(kept, placed).any():
            kept = np.concatenate([kept, placed[None]])
            found.append(np.array([*corners[at], scores[at, of], of], np.float32))
    return np.array(found, np.float32).reshape(-1, 6)


def _covers(kept: np.ndarray, other: np.ndarray) -> np.ndarray:
    sides = (np.minimum(kept[:, 2:], other[2:]) - np.maximum(kept[:, :2], other[:2])).clip(0)
    shared = sides[:, 0] * sides[:, 1]
    areas = (kept[:, 2] - kept[:, 0]) * (kept[:, 3] - kept[:, 1]) + (other[2] - other[0]) * (other[3] - other[1])
    return shared / (areas - shared) > np.float32(0.45)

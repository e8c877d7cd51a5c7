"""Overlap of matched box pairs: IoU, GIoU, DIoU and CIoU.

Formulas and rounding order are YOLOv5's. Sources: arXiv:1902.09630 (GIoU), arXiv:1911.08287 (DIoU, CIoU).
"""

import math
from functools import cache
from typing import Any, Literal, get_args

from kernels import plugin
from kernels.framework import dispatch
from kernels.runtime import Tensor, flow

IouKind = Literal["iou", "giou", "diou", "ciou"]

_SMALLEST_SIDE = 1.1754943508222875e-38
"""The smallest float32 whose reciprocal is finite."""


def bbox_iou(box1: Tensor, box2: Tensor, *, kind: IouKind = "ciou", xywh: bool = True, eps: float = 1e-7) -> Tensor:
    """Return the overlap of matched box pairs.

    It is 1 (less eps) for equal boxes, and negative down to -1 (CIoU: -2) for distant ones.

    Args:
        box1, box2: (..., 4), float32 or float64, the same shape, dtype and device; any unit of length.
        kind: "iou"; "giou" subtracts the empty share of the enclosing box; "diou" the squared centre distance over the
            squared diagonal of the enclosing box; "ciou" also a penalty for different aspect ratios.
        xywh: boxes are centre x, centre y, width, height; otherwise x1, y1, x2, y2, where eps is added to both heights.
        eps: keeps divisions finite; YOLOv5 uses 1e-7. A box with w = h = 0 in centre form still has the CIoU NaN.
    Returns:
        (...), dtype of the inputs. Gradients reach both boxes: the aspect weight alpha counts as a constant, a tied
        minimum or maximum passes half of the gradient to each side, and an overlap of exactly zero width passes it on.
    Raises:
        ValueError: unknown kind, or shapes or dtypes that differ. Values are not inspected, that would stall a device.
    """
    _check_pairs(box1, box2, kind)
    if plugin.is_loaded() and (box1.dtype == flow.float32 or not box1.is_cuda):
        return _fused_overlap(kind, xywh, eps, bool(box2.requires_grad)).apply(box1, box2)
    return bbox_iou_reference(box1, box2, kind=kind, xywh=xywh, eps=eps)


def bbox_iou_reference(
    box1: Tensor, box2: Tensor, *, kind: IouKind = "ciou", xywh: bool = True, eps: float = 1e-7
) -> Tensor:
    """Compute `bbox_iou` with OneFlow ops: the reference for the fused kernels."""
    left1, top1, right1, bottom1, width1, height1 = _sides(box1, xywh, eps)
    left2, top2, right2, bottom2, width2, height2 = _sides(box2, xywh, eps)
    overlap_width = (flow.minimum(right1, right2) - flow.maximum(left1, left2)).clamp(min=0.0)
    overlap_height = (flow.minimum(bottom1, bottom2) - flow.maximum(top1, top2)).clamp(min=0.0)
    intersection = overlap_width * overlap_height
    union = width1 * height1 + width2 * height2 - intersection + eps
    iou = intersection / union
    if kind == "iou":
        return iou

    left1, top1, right1, bottom1 = (_copy_for_third_use(side) for side in (left1, top1, right1, bottom1))
    left2, top2, right2, bottom2 = (_copy_for_third_use(side) for side in (left2, top2, right2, bottom2))
    hull_width = flow.maximum(right1, right2) - flow.minimum(left1, left2)
    hull_height = flow.maximum(bottom1, bottom2) - flow.minimum(top1, top2)
    if kind == "giou":
        hull_area = hull_width * hull_height + eps
        return iou - (hull_area - union) / hull_area

    diagonal2 = flow.square(hull_width) + flow.square(hull_height) + eps
    distance2 = (flow.square(left2 + right2 - left1 - right1) + flow.square(top2 + bottom2 - top1 - bottom1)) / 4
    if kind == "diou":
        return iou - distance2 / diagonal2

    turn = _AspectAngle.apply(width2, height2) - _AspectAngle.apply(width1, height1)
    aspect = (4 / math.pi**2) * flow.square(turn)
    with flow.no_grad():
        # In this order no sum is exactly 0 when rounding makes the IoU of equal boxes exceed 1 by a bit.
        alpha = aspect / (1 - iou + aspect + eps)
    return iou - (distance2 / diagonal2 + aspect * alpha)


class _AspectAngle(flow.autograd.Function):
    """Arc tangent of width / height.

    Its derivative is computed from sides divided by the longer one, because the quotient and the squares of sides
    overflow or underflow long before the derivative does: YOLOv5's is NaN for a box of 1 by 1e-20 cells.
    """

    @staticmethod
    def forward(context: Any, width: Tensor, height: Tensor) -> Tensor:
        context.save_for_backward(width, height)
        return flow.atan(width / height)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        width, height = context.saved_tensors
        longer = flow.maximum(width.abs(), height.abs()).clamp(min=_SMALLEST_SIDE)
        width, height = width / longer, height / longer
        scale = gradient / (longer * (width * width + height * height).clamp(min=1.0))
        return scale * height, -scale * width


@cache
def _fused_overlap(kind: IouKind, xywh: bool, eps: float, needs_gradient2: bool) -> Any:
    """Return the plugin's differentiable op for these settings, with one kernel each for forward and backward.

    Without `needs_gradient2` the gradient of box2 is not computed, as for targets.
    """
    pair = (("box1", 1), ("box2", 1))
    forward_op = dispatch.build_op("graph_train_bbox_iou", pair)
    backward_op = dispatch.build_op("graph_train_bbox_iou_grad", (*pair, ("grad", 1)))
    integers = (get_args(IouKind).index(kind), int(xywh))

    class FusedOverlap(flow.autograd.Function):
        @staticmethod
        def forward(context: Any, box1: Tensor, box2: Tensor) -> Tensor:
            context.save_for_backward(box1, box2)
            return dispatch.call(forward_op, (box1, box2), integers=integers, floats=(eps,))

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
            box1, box2 = context.saved_tensors
            floats = (eps, 2.0 if needs_gradient2 else 1.0)
            gradients = dispatch.call(backward_op, (box1, box2, gradient), integers=integers, floats=floats)
            return gradients[0], gradients[1] if needs_gradient2 else None

    return FusedOverlap


def _check_pairs(box1: Tensor, box2: Tensor, kind: str) -> None:
    if kind not in get_args(IouKind):
        raise ValueError(f"kind={kind!r}: choose one of {', '.join(get_args(IouKind))}")
    if tuple(box1.shape) != tuple(box2.shape) or box1.dtype != box2.dtype or tuple(box1.shape)[-1:] != (4,):
        raise ValueError(
            f"boxes of shape {tuple(box1.shape)} {box1.dtype} and {tuple(box2.shape)} {box2.dtype}: "
            "matched pairs need two tensors (..., 4) of the same shape and dtype"
        )


def _sides(boxes: Tensor, xywh: bool, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return left, top, right, bottom, width, height, each (...)."""
    first, second, third, fourth = (boxes[..., column] for column in range(4))
    if not xywh:
        return first, second, third, fourth, third - first, fourth - second + eps
    half_width, half_height = third / 2, fourth / 2
    return (
        first - half_width,
        second - half_height,
        first + half_width,
        second + half_height,
        _copy_for_third_use(third),
        _copy_for_third_use(fourth),
    )


def _copy_for_third_use(tensor: Tensor) -> Tensor:
    """Copy a tensor that already has two uses.

    Graphs and eager mode sum three or more gradients in different orders (the graph compiler merges chains of
    additions). With at most two uses of each tensor both are bitwise equal.
    """
    return tensor * 1.0 if tensor.requires_grad else tensor

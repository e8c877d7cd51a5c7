"""Loss of a YOLOv5 head as one plugin op: target assignment, CIoU, objectness, classes and gradients.

The forward pass also computes the gradients of the maps; the backward pass only returns them. `models.loss` composes
the same loss of OneFlow ops; both agree up to rounding.
"""

from collections.abc import Sequence
from enum import IntEnum
from functools import cache
from typing import Any

from kernels.framework import dispatch
from kernels.runtime import Tensor, flow

MAX_LEVELS = 5
FOCAL_ALPHA = 0.25
"""Weight of positive elements in the focal loss; negative ones have 1 - alpha."""


class LossSetting(IntEnum):
    """Positions in the settings of the op; `models.loss_config.LossConfig` explains them.

    The anchors of all levels follow, (levels, anchors, 2): width and height in cells of the level.
    """

    BOX_GAIN = 0
    OBJECTNESS_GAIN = 1
    CLASS_GAIN = 2
    CLASS_POSITIVE_WEIGHT = 3
    OBJECTNESS_POSITIVE_WEIGHT = 4
    ANCHOR_T = 5
    POSITIVE_TARGET = 6  # class targets, with label smoothing
    NEGATIVE_TARGET = 7
    GR = 8
    BEST_IOU_WINS = 9  # 1 or 0
    FOCAL_GAMMA = 10  # 0: plain cross-entropy
    FOCAL_ALPHA = 11


def detection_loss(
    maps: Sequence[Tensor], labels: Tensor, settings: Tensor, balance: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the loss of a batch, eagerly or inside `nn.Graph.build`, on one device or sharded by image.

    Args:
        maps: per level (B, rows, columns, anchors * (5 + classes)) float32 raw predictions, `split(0)` over ranks.
        labels: (B, T, 5) float32, class, centre x, centre y, width, height, normalised to the image; class -1: no
            label. For a class above the head's, the op fails on a CPU; on CUDA the label has no positive class.
        settings: (12 + 2 * levels * anchors,) float32, indexed by `LossSetting`.
        balance: (levels,) float32, objectness weights of the levels.
        scale: (n,) float32, n >= 1; the first number multiplies the gradients: loss scale times loss factor.
    Returns:
        The total loss (1,), without the scale: `B * (box + objectness + classes)`; and the parts (3 + levels,) for
        display and for `rebalance`: box, objectness, classes, each with its gain, then each level's mean objectness
        cross-entropy without gain and balance. Over ranks both are partial sums. Only the total is differentiable, and
        its incoming gradient is assumed to be 1: differentiate the total itself, and put any factor into `scale`.
    Raises:
        ValueError: incompatible shapes.
    """
    _check_shapes(maps, labels, settings, balance, scale)
    total, parts = _DetectionLoss.apply(labels, settings, balance.detach(), scale, *maps)
    return total, parts.detach()


def rebalance(balance: Tensor, parts: Tensor, reference_level: int) -> Tensor:
    """Update `balance` in place towards equal contributions of the levels; the reference level keeps 1.

    Args:
        balance: (levels,) float32; inside a graph the new values are visible from the next call.
        parts: (3 + levels,) float32, from `detection_loss`.
        reference_level: index of the reference level.
    Returns:
        (levels,) float32: a copy of the new balance.
    Source: YOLOv5's autobalance, `balance * 0.9999 + 0.0001 / mean objectness loss`.
    """
    op = dispatch.op_of("graph_train_rebalance", "balance", "parts")
    with flow.no_grad():
        return dispatch.call(op, (balance, parts), integers=(reference_level,))


@cache
def _loss_op(levels: int) -> dispatch.Op:
    inputs = (("map", levels), ("labels", 1), ("settings", 1), ("balance", 1), ("scale", 1))
    return dispatch.build_op("graph_train_detection_loss", inputs, outputs=2 + levels)


class _DetectionLoss(flow.autograd.Function):
    @staticmethod
    def forward(
        context: Any, labels: Tensor, settings: Tensor, balance: Tensor, scale: Tensor, *maps: Tensor
    ) -> tuple[Tensor, Tensor]:
        inputs = (*maps, labels, settings, balance, scale)
        total, parts, *gradients = dispatch.call_many(_loss_op(len(maps)), inputs)
        context.save_for_backward(*gradients)
        context.mark_non_differentiable(parts)  # otherwise OneFlow would create a gradient of zeros
        return total, parts

    @staticmethod
    def backward(context: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, None, None, *context.saved_tensors)


def _check_shapes(maps: Sequence[Tensor], labels: Tensor, settings: Tensor, balance: Tensor, scale: Tensor) -> None:
    levels = len(maps)
    if not 1 <= levels <= MAX_LEVELS:
        raise ValueError(f"{levels} maps: the loss supports 1 to {MAX_LEVELS} levels")
    anchors, rest = divmod(settings.numel() - len(LossSetting), 2 * levels)
    if settings.ndim != 1 or rest or anchors < 1 or tuple(balance.shape) != (levels,) or scale.numel() < 1:
        raise ValueError(
            f"settings {tuple(settings.shape)}, balance {tuple(balance.shape)} and scale {tuple(scale.shape)} for "
            f"{levels} levels: must be ({len(LossSetting)} + 2 * levels * anchors,), ({levels},) and (1 or more,)"
        )
    if labels.ndim != 3 or labels.shape[2] != 5:
        raise ValueError(f"labels {tuple(labels.shape)}: must be (B, T, 5)")
    for level in maps:
        shape = tuple(level.shape)
        if 0 in shape:
            raise ValueError(f"map {shape}: is empty; skip such batches")
        if len(shape) != 4 or shape[0] != labels.shape[0] or shape[3] % anchors or shape[3] // anchors < 6:
            raise ValueError(
                f"map {shape}: must be ({labels.shape[0]}, rows, columns, {anchors} * (5 + classes)) for labels "
                f"{tuple(labels.shape)} and {anchors} anchors"
            )
        if shape[3] != maps[0].shape[3]:
            raise ValueError(f"map {shape}: channels differ from the first level's {tuple(maps[0].shape)}")

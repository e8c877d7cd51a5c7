"""Loss of one level of a YOLOv5 head as one op of the plugin: target assignment, CIoU, objectness, classes, gradient.

The forward pass computes the gradient of the map along with the loss, the backward pass only scales it. The composed
form in OneFlow ops is `models.loss`; both give the same numbers to rounding.
"""

from enum import IntEnum
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels import plugin
from kernels.framework import dispatch
from kernels.runtime import Tensor, flow


class LevelSetting(IntEnum):
    """Where each value stands in the vector that `level_settings` builds; anchors follow."""

    BOX_GAIN = 0
    OBJECTNESS_GAIN = 1
    CLASS_GAIN = 2
    CLASS_POSITIVE_WEIGHT = 3
    OBJECTNESS_POSITIVE_WEIGHT = 4
    ANCHOR_T = 5
    POSITIVE_TARGET = 6
    NEGATIVE_TARGET = 7
    GR = 8
    BEST_IOU_WINS = 9


def level_settings(
    anchors_cells: npt.ArrayLike,
    *,
    box_gain: float,
    objectness_gain: float,
    class_gain: float,
    class_positive_weight: float = 1.0,
    objectness_positive_weight: float = 1.0,
    anchor_t: float = 4.0,
    label_smoothing: float = 0.0,
    gr: float = 1.0,
    best_iou_wins: bool = False,
) -> npt.NDArray[np.float32]:
    """The constants of one level as one vector.

    Args:
        anchors_cells: (anchors, 2) width and height in cells of the level.
        box_gain, objectness_gain, class_gain: weights of the three parts.
        class_positive_weight, objectness_positive_weight: weights of positive elements in the cross-entropies.
        anchor_t: largest ratio of sides between a label and an anchor that answers for it, not included.
        label_smoothing: share taken from the positive class target.
        gr: the objectness target is `1 - gr + gr * CIoU`.
        best_iou_wins: of several labels in one cell the one with the best CIoU sets the objectness target, otherwise
            the last in build order (neighbour, anchor, label).
    Returns:
        (10 + 2 * anchors,) float32, indexed by `LevelSetting`.
    """
    values = np.zeros(len(LevelSetting), np.float64)
    values[LevelSetting.BOX_GAIN] = box_gain
    values[LevelSetting.OBJECTNESS_GAIN] = objectness_gain
    values[LevelSetting.CLASS_GAIN] = class_gain
    values[LevelSetting.CLASS_POSITIVE_WEIGHT] = class_positive_weight
    values[LevelSetting.OBJECTNESS_POSITIVE_WEIGHT] = objectness_positive_weight
    values[LevelSetting.ANCHOR_T] = anchor_t
    values[LevelSetting.POSITIVE_TARGET] = 1 - 0.5 * label_smoothing
    values[LevelSetting.NEGATIVE_TARGET] = 0.5 * label_smoothing
    values[LevelSetting.GR] = gr
    values[LevelSetting.BEST_IOU_WINS] = float(best_iou_wins)
    return np.concatenate([values, np.asarray(anchors_cells, np.float64).ravel()]).astype(np.float32)


def has_fused_loss(raw_map: Tensor) -> bool:
    """Whether `level_loss` can take this map: the plugin is loaded, the map is float32, on the CPU and not distributed.

    Means run over the whole batch; over a batch that is split among devices the composed loss takes them.
    """
    return plugin.is_loaded() and not raw_map.is_cuda and raw_map.is_local and raw_map.dtype == flow.float32


def level_loss(raw_map: Tensor, labels: Tensor, settings: Tensor, balance: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of one level, eagerly or inside `nn.Graph.build`. Needs the plugin, see `has_fused_loss`.

    Args:
        raw_map: (B, anchors, rows, columns, 5 + classes) float32 raw predictions.
        labels: (B, T, 5) float32, class, centre x, centre y, width, height, normalised to the image; class -1: no
            label. A class above the head's is the caller's mistake, the op stops on it.
        settings: from `level_settings`.
        balance: (1,) float32, weight of this level's objectness.
    Returns:
        The level's share (1,) of the total loss, `B * (box + objectness gain * balance * objectness + classes)`, and
        the parts (3,): box, mean objectness cross-entropy (without gain and balance), classes. The gradient flows
        through the total alone; the parts are for display and for adapting the balance.
    Raises:
        ValueError: shapes that do not belong together.
    """
    _check_shapes(raw_map, labels, settings, balance)
    # In the order of `Settings` in csrc/detection_loss.cpp: the constants, the balance, the anchors, the labels.
    split = len(LevelSetting)
    packed = flow.cat([settings[:split], balance.detach(), settings[split:], labels.reshape(-1)])
    values = _FusedLevelLoss.apply(raw_map, packed)
    # Detached first, then cut: OneFlow forgets where a detached view begins.
    return values[0:1], values.detach()[1:4]


@cache
def _loss_op() -> dispatch.Op:
    return dispatch.op_of("graph_train_detection_loss", "map", "settings_and_labels", outputs=2)


class _FusedLevelLoss(flow.autograd.Function):
    @staticmethod
    def forward(context: Any, raw_map: Tensor, packed: Tensor) -> Tensor:
        values, gradient = dispatch.call_many(_loss_op(), (raw_map, packed))
        context.save_for_backward(gradient)
        return values

    @staticmethod
    def backward(context: Any, values_gradient: Tensor) -> tuple[Tensor, None]:
        (gradient,) = context.saved_tensors
        return gradient * values_gradient[0:1], None


def _check_shapes(raw_map: Tensor, labels: Tensor, settings: Tensor, balance: Tensor) -> None:
    if raw_map.ndim != 5 or labels.ndim != 3 or labels.shape[0] != raw_map.shape[0] or labels.shape[2] != 5:
        raise ValueError(
            f"map {tuple(raw_map.shape)} and labels {tuple(labels.shape)}: must be (B, anchors, rows, columns, "
            "5 + classes) and (B, T, 5)"
        )
    if 0 in tuple(raw_map.shape):
        raise ValueError(f"map {tuple(raw_map.shape)}: empty, there is nothing to take a mean of; drop such a batch")
    expected = (len(LevelSetting) + 2 * raw_map.shape[1],)
    if tuple(settings.shape) != expected or tuple(balance.shape) != (1,):
        raise ValueError(
            f"settings {tuple(settings.shape)} and balance {tuple(balance.shape)}: must be {expected} and (1,)"
        )

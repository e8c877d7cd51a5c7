"""YOLOv5's training loss with fixed shapes: CIoU of matched boxes, objectness of all cells, classes of matched cells.

The same code runs eagerly and inside `nn.Graph`: nothing is copied to the host and no shape depends on values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kernels.framework.global_rows import expand_sharded, replicated, stack_sharded
from kernels.framework.in_place import subtract
from kernels.ops.bbox_iou.function import bbox_iou, bbox_iou_reference
from kernels.ops.detection_loss.function import FOCAL_ALPHA, LossSetting, detection_loss, rebalance
from kernels.plugin import is_loaded
from kernels.runtime import Tensor, flow
from models.cross_entropy import BinaryCrossEntropy, FocalLoss, smooth_targets
from models.head import cells_of, channels_last_map
from models.layers import tensor_of
from models.loss_config import LossConfig
from models.targets import NEIGHBOURS, Assignment, HeadGeometry, TargetAssigner

_BALANCE_3_LEVELS = (4.0, 1.0, 0.4)
_BALANCE = (4.0, 1.0, 0.25, 0.06, 0.02)
# Autobalance keeps the weight of this level at 1.
_REFERENCE_STRIDE = 16


@dataclass(frozen=True)
class LossParts:
    """The loss of a batch, float32, on the device.

    Attributes:
        total: () or (1,), the differentiable sum of the parts times the batch size. If a scale was given, its gradients
            are those of `scale * total`.
        parts: (3 + n,) box, objectness, classes, and internal values of the loss; not differentiable.
    """

    total: Tensor
    parts: Tensor

    @property
    def box(self) -> Tensor:
        """(): box loss."""
        return self.parts[0]

    @property
    def objectness(self) -> Tensor:
        """(): objectness loss."""
        return self.parts[1]

    @property
    def classes(self) -> Tensor:
        """(): class loss."""
        return self.parts[2]


class LossDetails(NamedTuple):
    """A loss with its matches and objectness targets.

    Attributes:
        parts: the loss.
        assignment: the predictions matched with each label.
        objectness_targets: per level (B, anchors * rows * columns) float32.
    """

    parts: LossParts
    assignment: Assignment
    objectness_targets: list[Tensor]


class DetectionLoss(flow.nn.Module):
    """Loss of a detection head. Its only state is `balance` (levels,), the objectness weights of the levels.

    With `autobalance` each call in training mode updates `balance` afterwards.

    Args:
        head: geometry of the head.
        config: settings, gains already `scaled`.
        fused_iou: use the plugin's fused op for the whole loss if it is loaded; otherwise compose it of OneFlow ops.
    Raises:
        ValueError: more than five levels, or `autobalance` for a head without stride 16.
    """

    def __init__(self, head: HeadGeometry, config: LossConfig, *, fused_iou: bool = True) -> None:
        super().__init__()
        self.config = config
        self._bbox_iou = bbox_iou if fused_iou else bbox_iou_reference
        self._fuses = fused_iou
        self.head = head
        if head.levels > len(_BALANCE):
            raise ValueError(f"a head of {head.levels} levels: at most {len(_BALANCE)} are supported")
        if config.autobalance and _REFERENCE_STRIDE not in head.stride:
            raise ValueError(
                f"autobalance with strides {head.stride}: requires a level with stride {_REFERENCE_STRIDE}"
            )
        self._reference_level = head.stride.index(_REFERENCE_STRIDE) if config.autobalance else 0
        balance = _BALANCE_3_LEVELS if head.levels == 3 else _BALANCE[: head.levels]
        self.register_buffer("balance", flow.tensor(balance, dtype=flow.float32))
        anchors = flow.tensor(np.asarray(head.anchors_cells, np.float32))
        self.register_buffer("anchor_sides", anchors.reshape(1, head.levels, 1, head.anchors, 1, 2), persistent=False)
        self.assigner = TargetAssigner(head, config.anchor_t)
        self.class_elements = _element_loss(config.cls_pw, config.fl_gamma)
        self.objectness_elements = _element_loss(config.obj_pw, config.fl_gamma)
        self.register_buffer("settings", flow.tensor(fused_settings(head.anchors_cells, config)), persistent=False)
        self.register_buffer("one", flow.ones(1, dtype=flow.float32), persistent=False)

    def forward(self, maps: Sequence[Tensor], labels: Tensor, scale: Tensor | None = None) -> LossParts:
        """Compute the loss of a batch.

        Args:
            maps: raw predictions of each level, from `DetectionModel.raw_maps` or `DetectionModel.forward`.
            labels: (B, T, 5) float32, class, centre x, centre y, width, height, normalised to the image; class -1: no
                label. A class number beyond those of the head is an error on the device.
            scale: (n,) float32, n >= 1; the first number multiplies the gradients.
        """
        self._check(maps, labels)
        if self._fuses and is_loaded():
            raw = [channels_last_map(level) for level in maps]
            return self._fused(raw, labels, self.one if scale is None else scale)
        parts = self.details([cells_of(level, self.head.anchors) for level in maps], labels).parts
        return parts if scale is None else LossParts(_ScaledGradient.apply(parts.total, scale), parts.parts)

    def _fused(self, maps: Sequence[Tensor], labels: Tensor, scale: Tensor) -> LossParts:
        """Compute the loss with the plugin's fused op."""
        total, parts = detection_loss(maps, labels, self.settings, self.balance, scale)
        if self.config.autobalance and self.training:
            rebalance(tensor_of(self.balance), replicated(parts), self._reference_level)
        return LossParts(total, parts)

    def details(self, maps: Sequence[Tensor], labels: Tensor) -> LossDetails:
        """Compute the loss, matches and objectness targets from maps of `DetectionModel.forward`."""
        batch = labels.shape[0]
        assignment = self.assigner(labels, [(level.shape[2], level.shape[3]) for level in maps])
        flat = [_float32(level).reshape(batch, -1, level.shape[-1]) for level in maps]

        unmatched = flow.logical_not(assignment.matched)
        rows = _gather_predictions(flat, assignment)
        iou = self._bbox_iou(self._predicted_boxes(rows, unmatched), assignment.boxes_cells, kind="ciou")
        # (levels,) matches; the loss of a level without matches is 0, as all its entries are masked.
        count = assignment.matched.to(flow.float32).sum(dim=2).sum(dim=0).clamp(min=1.0)
        box = self.config.box * (_sum_matches(1.0 - iou, unmatched) / count).sum()

        targets = self._objectness_targets(iou.detach(), assignment.cell, unmatched, flat)
        per_level = self._objectness(flat, targets)
        # A copy of the balance: the gradient needs the weights of this call, but `balance` is updated below.
        objectness = (per_level * (self.balance * self.config.objectness)).sum()
        if self.config.autobalance and self.training:
            self._rebalance(per_level.detach())

        classes = self._classes(rows, labels, unmatched, count) if self.head.num_classes > 1 else box.detach() * 0.0
        # A single sum: a graph would add three terms in another order than eager mode.
        total = flow.stack([box, objectness, classes]).sum() * float(batch)
        with flow.no_grad():
            values = flow.stack([box, objectness, classes])
        return LossDetails(LossParts(total, values), assignment, targets)

    def _check(self, maps: Sequence[Tensor], labels: Tensor) -> None:
        width, anchors = 5 + self.head.num_classes, self.head.anchors
        if len(maps) != self.head.levels or labels.ndim != 3 or labels.shape[2] != 5:
            raise ValueError(
                f"{len(maps)} maps and labels {tuple(labels.shape)}: expected {self.head.levels} maps and labels (B, "
                "T, 5)"
            )
        for level in maps:
            shape = tuple(level.shape)
            of_cell = (anchors * width,) if len(shape) == 4 else (anchors, width)
            found = (*shape[3:],) if len(shape) == 4 else (*shape[1:2], *shape[4:])
            if len(shape) not in (4, 5) or shape[0] != labels.shape[0] or found != of_cell:
                raise ValueError(
                    f"map {shape}: must be ({labels.shape[0]}, rows, columns, {anchors * width}) or "
                    f"({labels.shape[0]}, {anchors}, rows, columns, {width})"
                )

    def _predicted_boxes(self, rows: Tensor, unmatched: Tensor) -> Tensor:
        """Return (B, levels, E, 4): centre relative to the cell's corner, width, height, in cells.

        Entries without a match read an arbitrary cell; their sides are replaced, since a side of 0 would give NaN.
        """
        batch, levels, entries = unmatched.shape
        anchors, slots = self.head.anchors, entries // (NEIGHBOURS * self.head.anchors)
        # One tensor per coordinate: short trailing axes are slow on the CPU.
        scores = flow.sigmoid(rows[..., 0:4]) * 2.0
        coordinates = [scores[..., axis] - 0.5 for axis in (0, 1)]
        for axis in (0, 1):
            by_entry = expand_sharded(self.anchor_sides[..., axis], batch, levels, NEIGHBOURS, anchors, slots)
            side = flow.square(scores[..., 2 + axis]) * by_entry.reshape(batch, levels, entries)
            coordinates.append(side.masked_fill(unmatched, 1.0))
        return stack_sharded(coordinates, dim=-1)

    def _objectness_targets(self, iou: Tensor, cell: Tensor, unmatched: Tensor, flat: Sequence[Tensor]) -> list[Tensor]:
        """Return the objectness targets (B, cells) of each level; 0 for unmatched cells.

        If several entries share a cell, the last one wins on every device: a stable sort by cell groups them in order,
        and only the last of each group is written.
        """
        # NaN cannot be sorted: unmatched entries may be NaN, and all of them once the network has diverged.
        unusable = flow.logical_or(unmatched, flow.isnan(iou))
        quality = iou.clamp(min=0.0).masked_fill(unusable, 0.0)
        if self.config.sort_obj_iou:
            order = flow.argsort(quality, dim=-1)
            cell, quality = flow.gather(cell, -1, order), flow.gather(quality, -1, order)
        if self.config.gr < 1:
            quality = (1.0 - self.config.gr) + self.config.gr * quality
        order = flow.argsort(cell, dim=-1)
        cell, quality = flow.gather(cell, -1, order), flow.gather(quality, -1, order)
        following = flow.cat([cell[..., 1:], cell[..., :1] * 0 - 2], dim=-1)
        wins = flow.logical_and(cell != following, cell >= 0)
        quality, cell = quality.masked_fill(flow.logical_not(wins), 0.0), cell.clamp(min=0)
        # Zeros derived from the predictions have the same placement and sharding.
        return [
            flow.scatter_add(rows[..., 4].detach().clamp(0.0, 0.0), 1, cell[:, level], quality[:, level])
            for level, rows in enumerate(flat)
        ]

    def _objectness(self, flat: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """Return the mean objectness loss over the cells of each level, (levels,)."""
        elements = self.objectness_elements(flow.cat([rows[..., 4] for rows in flat], dim=1), flow.cat(targets, dim=1))
        means, start = [], 0
        for rows in flat:
            cells = rows.shape[1]
            means.append(elements[:, start : start + cells].sum(dim=1).sum() / float(rows.shape[0] * cells))
            start += cells
        return flow.stack(means)

    def _rebalance(self, per_level: Tensor) -> None:
        """Update `balance` towards equal contributions of the levels, relative to the level of stride 16."""
        new_balance = self.balance * 0.9999 + 0.0001 / per_level
        level = self._reference_level
        new_balance = new_balance / new_balance[level : level + 1]
        subtract(tensor_of(self.balance), self.balance - new_balance)

    def _classes(self, rows: Tensor, labels: Tensor, unmatched: Tensor, count: Tensor) -> Tensor:
        batch, slots = labels.shape[0], labels.shape[1]
        entries, classes = rows.shape[2], self.head.num_classes
        positive, negative = smooth_targets(self.config.label_smoothing)
        number = labels[:, :, 0].clamp(min=0.0).to(flow.int64)
        targets = flow._C.one_hot(number, classes, positive, negative)
        targets = targets.reshape(batch, 1, 1, slots, classes)
        targets = targets.expand(batch, self.head.levels, entries // slots, slots, classes).reshape(
            batch, self.head.levels, entries, classes
        )
        losses = self.class_elements(rows[..., 5:], targets).sum(dim=-1)
        return self.config.classes * (_sum_matches(losses, unmatched) / (count * float(classes))).sum()


class _ScaledGradient(flow.autograd.Function):
    """Identity whose gradient is multiplied by the first element of `scale`."""

    @staticmethod
    def forward(context: Any, total: Tensor, scale: Tensor) -> Tensor:
        context.save_for_backward(scale)
        return flow._C.identity(total)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (scale,) = context.saved_tensors
        return gradient * scale[0], None


def fused_settings(anchors_cells: npt.ArrayLike, config: LossConfig) -> npt.NDArray[np.float32]:
    """Return the `settings` of the plugin's op for anchors (levels, anchors, 2), width and height in cells."""
    positive, negative = smooth_targets(config.label_smoothing)
    values = {
        LossSetting.BOX_GAIN: config.box,
        LossSetting.OBJECTNESS_GAIN: config.objectness,
        LossSetting.CLASS_GAIN: config.classes,
        LossSetting.CLASS_POSITIVE_WEIGHT: config.cls_pw,
        LossSetting.OBJECTNESS_POSITIVE_WEIGHT: config.obj_pw,
        LossSetting.ANCHOR_T: config.anchor_t,
        LossSetting.POSITIVE_TARGET: positive,
        LossSetting.NEGATIVE_TARGET: negative,
        LossSetting.GR: config.gr,
        LossSetting.BEST_IOU_WINS: config.sort_obj_iou,
        LossSetting.FOCAL_GAMMA: config.fl_gamma,
        LossSetting.FOCAL_ALPHA: FOCAL_ALPHA,
    }
    return np.array([*(values[setting] for setting in LossSetting), *np.ravel(anchors_cells)], np.float32)


def _element_loss(positive_weight: float, gamma: float) -> flow.nn.Module:
    plain = BinaryCrossEntropy(positive_weight)
    return FocalLoss(plain, gamma) if gamma > 0 else plain


def _gather_predictions(flat: Sequence[Tensor], assignment: Assignment) -> Tensor:
    """Return the prediction of each entry, (B, levels, E, 5 + classes).

    Entries without a match get the prediction of the first cell.
    """
    source = assignment.cell.clamp(min=0)
    return stack_sharded([flow._C.batch_gather(rows, source[:, level]) for level, rows in enumerate(flat)], dim=1)


def _sum_matches(values: Tensor, unmatched: Tensor) -> Tensor:
    """Sum the matches of (B, levels, E) to (levels,), per image first, since long float32 sums lose precision."""
    return values.masked_fill(unmatched, 0.0).sum(dim=2).sum(dim=0)


def _float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == flow.float32 else tensor.to(flow.float32)

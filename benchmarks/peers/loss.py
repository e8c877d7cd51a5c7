"""YOLOv5's loss in PyTorch, computed on matched targets only, as the reference does."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

_EPS = 1e-7
_STEPS = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))


class Matches(NamedTuple):
    """Targets of one level: n matches ordered by neighbour, anchor, label."""

    image: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor
    box: Tensor
    """(n, 4): centre relative to its cell's corner, width, height, in cells."""
    sides: Tensor
    """(n, 2) width and height of the anchor, in cells."""
    category: Tensor


def ciou(first: Tensor, second: Tensor) -> Tensor:
    """Return the CIoU of matched boxes (n, 4) as centre x, centre y, width, height. Source: arXiv:1911.08287."""
    (x1, y1, w1, h1), (x2, y2, w2, h2) = first.unbind(1), second.unbind(1)
    left1, right1, top1, bottom1 = x1 - w1 / 2, x1 + w1 / 2, y1 - h1 / 2, y1 + h1 / 2
    left2, right2, top2, bottom2 = x2 - w2 / 2, x2 + w2 / 2, y2 - h2 / 2, y2 + h2 / 2
    width = (torch.minimum(right1, right2) - torch.maximum(left1, left2)).clamp(min=0)
    height = (torch.minimum(bottom1, bottom2) - torch.maximum(top1, top2)).clamp(min=0)
    overlap = width * height
    iou = overlap / (w1 * h1 + w2 * h2 - overlap + _EPS)
    hull_width = torch.maximum(right1, right2) - torch.minimum(left1, left2)
    hull_height = torch.maximum(bottom1, bottom2) - torch.minimum(top1, top2)
    distance = ((x2 - x1) ** 2 + (y2 - y1) ** 2) / (hull_width**2 + hull_height**2 + _EPS)
    aspect = 4 / math.pi**2 * (torch.atan(w2 / h2) - torch.atan(w1 / h1)) ** 2
    with torch.no_grad():
        alpha = aspect / (aspect - iou + (1 + _EPS))
    return iou - (distance + aspect * alpha)


class DetectionLoss(nn.Module):
    """Box, objectness and class loss; the settings are those of `models.loss.LossConfig` with scaled gains."""

    def __init__(self, head: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        super().__init__()
        for name, neutral in (("fl_gamma", 0), ("label_smoothing", 0), ("autobalance", False), ("gr", 1)):
            if settings[name] != neutral:
                raise ValueError(f"{name}={settings[name]}: not supported by the PyTorch peer")
        self._gains = {name: settings[name] for name in ("box", "objectness", "classes")}
        self._anchor_t = settings["anchor_t"]
        self._balance = head["balance"]
        self.register_buffer("anchors", torch.tensor(head["anchors_cells"], dtype=torch.float32))
        self.register_buffer("steps", torch.tensor(_STEPS) * 0.5)
        self.register_buffer("class_weight", torch.tensor([float(settings["cls_pw"])]))
        self.register_buffer("objectness_weight", torch.tensor([float(settings["obj_pw"])]))

    def forward(self, maps: Sequence[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the loss of a batch.

        Args:
            maps: raw float32 predictions of each level, (B, anchors, rows, columns, 5 + classes).
            labels: (n, 6) image number, class and normalised centre x, centre y, width, height.
        Returns:
            The sum of the three parts times the batch size, and the detached parts (3,).
        """
        parts = [maps[0].new_zeros(1) for _ in range(3)]
        for raw, anchors, balance in zip(maps, self.anchors, self._balance, strict=True):
            wanted = torch.zeros_like(raw[..., 0])
            found = self._matches(labels, anchors, rows=raw.shape[2], columns=raw.shape[3])
            if len(found.image):
                cells = raw[found.image, found.anchor, found.row, found.column]
                iou = self._overlaps(cells, found)
                parts[0] = parts[0] + (1 - iou).mean()
                wanted[found.image, found.anchor, found.row, found.column] = iou.detach().clamp(0).to(wanted.dtype)
                parts[2] = parts[2] + self._class_loss(cells, found)
            elements = functional.binary_cross_entropy_with_logits(
                raw[..., 4], wanted, pos_weight=self.objectness_weight
            )
            parts[1] = parts[1] + elements * balance
        gained = [part * self._gains[name] for part, name in zip(parts, self._gains, strict=True)]
        return sum(gained, start=gained[0].new_zeros(1)) * maps[0].shape[0], torch.cat(gained).detach()

    @staticmethod
    def _overlaps(cells: Tensor, found: Matches) -> Tensor:
        scores = cells[:, :4].sigmoid() * 2
        predicted = torch.cat((scores[:, :2] - 0.5, scores[:, 2:] ** 2 * found.sides), 1)
        return ciou(predicted, found.box)

    def _class_loss(self, cells: Tensor, found: Matches) -> Tensor:
        scores = cells[:, 5:]
        if scores.shape[1] == 1:
            return scores.new_zeros(1)
        wanted = functional.one_hot(found.category, scores.shape[1]).to(scores.dtype)
        return functional.binary_cross_entropy_with_logits(scores, wanted, pos_weight=self.class_weight)

    def _matches(self, labels: Tensor, anchors: Tensor, *, rows: int, columns: int) -> Matches:
        """Match labels to anchors of similar size in their own cell and in neighbours nearer than half a cell."""
        size = labels.new_tensor([columns, rows])
        boxes = labels[:, 2:] * size.repeat(2)
        ratio = boxes[None, :, 2:] / anchors[:, None]
        fits = torch.maximum(ratio, 1 / ratio).amax(2) < self._anchor_t
        anchor, label = fits.nonzero(as_tuple=True)
        centre = boxes[label, :2]
        from_start, from_end = centre, size - centre
        near = [(side % 1 < 0.5) & (side > 1) for side in (from_start, from_end)]
        reached = torch.cat([torch.ones_like(near[0][:, :1]), near[0], near[1]], 1).T
        neighbour, entry = reached.nonzero(as_tuple=True)
        anchor, label, centre = anchor[entry], label[entry], centre[entry]
        cell = (centre - self.steps[neighbour]).long()
        corner = torch.minimum(cell.clamp(min=0), (size - 1).long())
        box = torch.cat((centre - cell, boxes[label, 2:]), 1)
        image, category = labels[label, 0].long(), labels[label, 1].long()
        return Matches(image, anchor, corner[:, 1], corner[:, 0], box, anchors[anchor], category)

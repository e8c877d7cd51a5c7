"""YOLOv5's matching of predictions to labels with fixed shapes.

An *entry* is a (level, neighbour, anchor, label slot). All entries exist in every batch, so that shapes do not depend
on the data; a mask marks the matches. Images are processed independently, so a batch can be sharded over devices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kernels.framework.global_rows import expand_sharded
from kernels.runtime import Tensor, flow

# A label is matched in the cell of its centre and in neighbours closer than half a cell; x, y in cells.
_NEIGHBOUR_REACH = 0.5
_NEIGHBOUR_STEPS = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))
NEIGHBOURS = len(_NEIGHBOUR_STEPS)
# Cell indices are computed in float32, which is exact up to this number.
_MAX_CELLS = 2**24
# Lower limit of sides, far below those of any label that matches an anchor; a side of 0 would give NaN before masking.
_SMALLEST_SIDE_CELLS = 1e-6


@dataclass(frozen=True, eq=False)
class HeadGeometry:
    """Geometry of a detection head for the loss.

    Attributes:
        anchors_cells: (levels, anchors, 2) width and height of each anchor in cells of its level.
        stride: pixels per cell, one per level.
        num_classes: number of class scores after x, y, w, h and objectness.
    """

    anchors_cells: npt.NDArray[np.float32]
    stride: tuple[float, ...]
    num_classes: int

    def __post_init__(self) -> None:
        shape = self.anchors_cells.shape
        if len(shape) != 3 or shape[2] != 2 or shape[0] != len(self.stride):
            raise ValueError(f"anchors of shape {shape} for {len(self.stride)} strides: must be (levels, anchors, 2)")
        if not (self.anchors_cells > 0).all():
            raise ValueError("anchors must have a width and height above 0")
        if self.num_classes < 1:
            raise ValueError(f"{self.num_classes} classes: must be at least one")

    @property
    def levels(self) -> int:
        """Number of feature maps."""
        return self.anchors_cells.shape[0]

    @property
    def anchors(self) -> int:
        """Number of anchors per level."""
        return self.anchors_cells.shape[1]


class Assignment(NamedTuple):
    """Matches of a batch of B images, with E = 5 * anchors * T entries per level in YOLOv5's order.

    Attributes:
        cell: (B, levels, E) int64; (anchor * rows + row) * columns + column in the entry's level, -1: no match.
        matched: (B, levels, E) bool; cell >= 0.
        boxes_cells: (B, levels, E, 4) float32; centre relative to the cell's corner, width, height, in cells. Undefined
            for entries without a match.
    """

    cell: Tensor
    matched: Tensor
    boxes_cells: Tensor


class TargetAssigner(flow.nn.Module):
    """Assigner of labels to anchors of similar size, in the cell of the label's centre and its near neighbours.

    A label matches an anchor if the ratio of their sides is below `anchor_t` both ways. Entries of an image are ordered
    by neighbour (centre, left, up, right, down), anchor and label.

    Args:
        head: geometry of the head.
        anchor_t: limit of the side ratio, exclusive.
    """

    def __init__(self, head: HeadGeometry, anchor_t: float) -> None:
        super().__init__()
        self._anchor_t = anchor_t
        self._levels, self._anchors = head.levels, head.anchors
        anchors = flow.tensor(np.asarray(head.anchors_cells, np.float32))
        shift = flow.tensor(np.asarray(_NEIGHBOUR_STEPS, np.float32) * np.float32(_NEIGHBOUR_REACH))
        number = flow.tensor(np.arange(head.anchors, dtype=np.float32))
        self.register_buffer("anchor_sides", anchors.reshape(1, head.levels, head.anchors, 2, 1), persistent=False)
        self.register_buffer("shift", shift.reshape(1, 1, NEIGHBOURS, 2, 1), persistent=False)
        self.register_buffer("anchor_number", number.reshape(1, 1, 1, head.anchors, 1), persistent=False)
        # Map sizes are derived from this tensor, since tensors created inside a graph have no placement.
        self.register_buffer("one", flow.ones(1, dtype=flow.float32), persistent=False)

    def forward(self, labels: Tensor, grids: Sequence[tuple[int, int]]) -> Assignment:
        """Find the matches.

        Args:
            labels: (B, T, 5) float32, class, centre x, centre y, width, height, normalised to the image; class -1: no
                label.
            grids: rows and columns of each level's map.
        """
        batch, slots, levels = labels.shape[0], labels.shape[1], self._levels
        entries = (batch, levels, NEIGHBOURS, self._anchors, slots)
        size = self._grid_sizes(grids)
        # Broadcasting inner dimensions is slow on the CPU, so operands are expanded first.
        scale = expand_sharded(flow.cat([size, size], dim=2), batch, levels, 4, slots)
        boxes = labels[:, :, 1:5].transpose(1, 2).unsqueeze(1).expand(batch, levels, 4, slots) * scale
        centre, sides = boxes[:, :, 0:2], boxes[:, :, 2:4]
        near = self._near(centre, scale[:, :, 0:2], labels[:, :, 0] >= 0)
        matched = flow.logical_and(near.unsqueeze(3).expand(*entries), self._fits(sides).unsqueeze(2).expand(*entries))

        cell, local = self._cells(centre, size)
        sides = sides.clamp(min=_SMALLEST_SIDE_CELLS)
        coordinates = [local[:, :, :, axis].unsqueeze(3).expand(*entries) for axis in (0, 1)]
        coordinates += [sides[:, :, axis].reshape(batch, levels, 1, 1, slots).expand(*entries) for axis in (0, 1)]
        per_level = (batch, levels, NEIGHBOURS * self._anchors * slots)
        return Assignment(
            cell=cell.masked_fill(flow.logical_not(matched), -1.0).reshape(*per_level).to(flow.int64),
            matched=matched.reshape(*per_level),
            boxes_cells=flow.stack(coordinates, dim=-1).reshape(*per_level, 4),
        )

    def _grid_sizes(self, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Return columns and rows of each level, (1, levels, 2, 1)."""
        for rows, columns in grids:
            if rows * columns * self._anchors > _MAX_CELLS:
                raise ValueError(f"a map of {rows} x {columns} cells is too large: use a smaller image size")
        numbers = [float(number) for rows, columns in grids for number in (columns, rows)]
        return flow.cat([self.one * number for number in numbers]).reshape(1, self._levels, 2, 1)

    def _fits(self, sides: Tensor) -> Tensor:
        """Return whether label sides (B, levels, 2, T) match the anchor's, (B, levels, anchors, T)."""
        batch, levels, _, slots = sides.shape
        shape = (levels, self._anchors, 2, slots)
        ratio = sides.unsqueeze(2).expand(batch, *shape) / expand_sharded(self.anchor_sides, batch, *shape)
        worst = flow.maximum(ratio, flow.reciprocal(ratio))
        return flow.maximum(worst[:, :, :, 0], worst[:, :, :, 1]) < self._anchor_t

    def _near(self, centre: Tensor, size: Tensor, present: Tensor) -> Tensor:
        """Return which of centre, left, up, right and down are closer than half a cell, (B, levels, 5, T)."""
        batch, levels, _, slots = centre.shape
        present = present.reshape(batch, 1, 1, slots)
        reached = [present.expand(batch, levels, 1, slots)]
        for distance in (centre, size - centre):
            close = (distance - flow.floor(distance)) < _NEIGHBOUR_REACH
            reached.append(flow.logical_and(close, distance > 1.0))
        return flow.logical_and(flow.cat(reached, dim=2), present.expand(batch, levels, NEIGHBOURS, slots))

    def _cells(self, centre: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Return cell indices (B, levels, 5, anchors, T) as float32, and centres within cells (B, levels, 5, 2, T)."""
        batch, levels, _, slots = centre.shape
        shape = (levels, NEIGHBOURS, 2, slots)
        last = expand_sharded((size - 1.0).unsqueeze(2), batch, *shape)
        centre = centre.unsqueeze(2).expand(batch, *shape)
        corner = flow.floor(centre - expand_sharded(self.shift, batch, *shape)).clamp(min=0.0)
        corner = flow.minimum(corner, last)

        columns = size[:, :, 0].reshape(1, levels, 1, 1)
        cell = corner[:, :, :, 1] * expand_sharded(columns, batch, levels, NEIGHBOURS, slots) + corner[:, :, :, 0]
        per_anchor = (size[:, :, 0] * size[:, :, 1]).reshape(1, levels, 1, 1, 1)
        shape = (levels, NEIGHBOURS, self._anchors, slots)
        first = expand_sharded(self.anchor_number * per_anchor, batch, *shape)
        return cell.unsqueeze(3).expand(batch, *shape) + first, centre - corner

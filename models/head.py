"""The detection head: raw maps per level, and their decoding into boxes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.ops.detections.function import decode_maps
from kernels.runtime import Tensor, flow
from models import layout
from models.layers import Conv2d, tensor_of

nn: Any = flow.nn


def cells_of(raw: Tensor, anchors: int) -> Tensor:
    """Reshape a map to (B, anchors, ny, nx, 5 + classes), from (B, ny, nx, anchors * (5 + classes)) if needed."""
    if raw.ndim == 5:
        return raw
    batch, rows, columns, numbers = raw.shape
    return raw.reshape(batch, rows, columns, anchors, numbers // anchors).permute(0, 3, 1, 2, 4)


def channels_last_map(raw: Tensor) -> Tensor:
    """Reshape a map to (B, ny, nx, anchors * (5 + classes)), from (B, anchors, ny, nx, 5 + classes) if needed."""
    if raw.ndim == 4:
        return raw
    batch, anchors, rows, columns, numbers = raw.shape
    return raw.permute(0, 2, 3, 1, 4).reshape(batch, rows, columns, anchors * numbers)


class Detect(nn.Module):
    """Detection head: one 1x1 convolution per level, with the anchors in a buffer.

    Attributes:
        anchors: buffer (levels, anchors, 2) float32, width and height in grid cells of the level.
        stride: px per cell of each level.
    """

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, anchors_px: npt.ArrayLike, stride: Sequence[int]
    ) -> None:
        super().__init__()
        anchors = np.asarray(anchors_px, np.float32)
        self.stride = tuple(stride)
        self.num_classes = num_classes
        self.anchors_per_level = anchors.shape[1]
        self.register_buffer("anchors", flow.tensor(self._in_cells(anchors)))
        self.m = nn.ModuleList([Conv2d(c, self.anchors_per_level * (num_classes + 5), 1) for c in in_channels])

    def _in_cells(self, anchors_px: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.asarray(anchors_px, np.float32) / np.asarray(self.stride, np.float32).reshape(-1, 1, 1)

    def set_anchors_px(self, anchors_px: npt.ArrayLike) -> None:
        """Replace the anchors, (levels, anchors, 2) in px, in the order of the levels."""
        anchors = np.asarray(anchors_px, np.float32)
        if anchors.shape != tuple(self.anchors.shape):
            raise ValueError(f"anchors of shape {anchors.shape}: expected {tuple(self.anchors.shape)}")
        self.anchors.copy_(flow.tensor(self._in_cells(anchors)))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Map features [(B, C_i, ny, nx)] to raw maps [(B, anchors, ny, nx, 5 + classes)], without sigmoid.

        The features are in the current layout, the maps always as above, float32.
        """
        return [self.cells_of(raw) for raw in self.raw_maps(features)]

    def raw_maps(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the outputs of the head's convolutions, float32.

        [(B, ny, nx, anchors * (5 + classes))] with channels last, else [(B, anchors, ny, nx, 5 + classes)].
        """
        maps = []
        for convolution, feature in zip(self.m, features):  # noqa: B905 - a graph's block list is no sequence
            raw = convolution(feature)
            if not layout.channels_last():
                batch, (rows, columns) = feature.shape[0], layout.size_of(feature)
                cell = (self.anchors_per_level, self.num_classes + 5)
                raw = raw.reshape(batch, *cell, rows, columns).permute(0, 1, 3, 4, 2)
            maps.append(raw)
        return maps

    def cells_of(self, raw: Tensor) -> Tensor:
        """Reshape a map of `raw_maps` to (B, anchors, ny, nx, 5 + classes)."""
        return cells_of(raw, self.anchors_per_level)

    def decode(self, maps: Sequence[Tensor]) -> Tensor:
        """Decode maps of `raw_maps` or `forward`: (B, N, 5 + classes) centre and size in px, sigmoid confidences.

        N is ordered by level, anchor, row, column. Source: YOLOv5, `2 sigmoid - 0.5` for centres and
        `(2 sigmoid)^2` times the anchor for sides.
        """
        if all(raw.ndim == 4 for raw in maps):
            return decode_maps(maps, tensor_of(self.anchors), self.stride)
        flat = []
        for level, (raw, stride) in enumerate(zip(maps, self.stride, strict=True)):
            batch, anchors, rows, columns, outputs = raw.shape
            xy, wh, confidences = flow.split(flow.sigmoid(raw), [2, 2, outputs - 4], dim=-1)
            corner, sides_px = self._constants(raw, level)
            boxes = [(xy * 2.0 + corner) * float(stride), (wh * 2.0) * (wh * 2.0) * sides_px, confidences]
            flat.append(flow.cat(boxes, dim=-1).reshape(batch, anchors * rows * columns, outputs))
        return flow.cat(flat, dim=1) if len(flat) > 1 else flat[0]

    def _constants(self, raw: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Return cell corners minus one half (1, 1, ny, nx, 2) and anchor sides in px (1, anchors, 1, 1, 2)."""
        rows, columns = raw.shape[2], raw.shape[3]
        place = {"placement": raw.placement, "sbp": flow.sbp.broadcast} if raw.is_global else {"device": raw.device}
        x = (
            flow.arange(columns, dtype=flow.float32, **place)
            .reshape(1, 1, 1, columns, 1)
            .expand(1, 1, rows, columns, 1)
        )
        y = flow.arange(rows, dtype=flow.float32, **place).reshape(1, 1, rows, 1, 1).expand(1, 1, rows, columns, 1)
        anchors_px = self.anchors[level] * float(self.stride[level])
        return flow.cat([x, y], dim=-1) - 0.5, anchors_px.reshape(1, -1, 1, 1, 2)

"""Augmented inference: an image is seen at three scales, once mirrored, and the boxes of all views are handed to the
suppression together, as by YOLOv5's `--augment`."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.runtime import Tensor, flow

Array = npt.NDArray[Any]

BORDER_VALUE = 0.447 * 255
"""Grey of the border that fills a scaled image up to whole strides: the mean of ImageNet, in pixel values."""


@dataclass(frozen=True)
class View:
    """One way to see an image: its scale, and whether it is mirrored left to right."""

    scale: float
    mirrored: bool


VIEWS = (View(1.0, False), View(0.83, True), View(0.67, False))


class AugmentedInference:
    """Several views of each batch through one detector.

    Args:
        predict: (float32 tensor (B, 3, H, W) in [0, 255]) to decoded predictions (B, N, 5 + nc) float32, the rows of
            the finest level first.
        strides: of the network's levels, finest first.
        grid_px: what the sides of a view must be multiples of; by default the coarsest stride.
    """

    def __init__(
        self, predict: Callable[[Tensor], Array], strides: Sequence[int], *, grid_px: int | None = None
    ) -> None:
        self._predict, self._strides, self._grid_px = predict, strides, grid_px or max(strides)

    def __call__(self, images: Any, label_rows: Array) -> tuple[Array, None]:
        """Return predictions of all views in px of the given images (B, 3, H, W) uint8; no loss is computed."""
        whole = (flow.from_numpy(images) if isinstance(images, np.ndarray) else images).to(flow.float32)
        width = int(whole.shape[3])
        parts = []
        for number, view in enumerate(VIEWS):
            rows = self._predict(scaled(whole, view, self._grid_px))
            rows = back_to_image(self._without_edge_level(rows, number), view, width)
            parts.append(rows)
        return np.concatenate(parts, axis=1), None

    def _without_edge_level(self, rows: Array, number: int) -> Array:
        """Drop the coarsest level of the largest view and the finest of the smallest: others see that better."""
        levels = len(self._strides)
        unit = rows.shape[1] // sum(4**level for level in range(levels))
        if number == 0:
            return rows[:, : rows.shape[1] - unit]
        return rows[:, unit * 4 ** (levels - 1) :] if number == len(VIEWS) - 1 else rows


def scaled(images: Tensor, view: View, stride: int) -> Tensor:
    """Return the view of (B, 3, H, W) images, filled up with grey on the right and below to multiples of `stride`."""
    if view.mirrored:
        images = flow.flip(images, [3])
    if view.scale == 1.0:
        return images
    height, width = int(images.shape[2]), int(images.shape[3])
    size = (int(height * view.scale), int(width * view.scale))
    images = flow.nn.functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
    filled_h, filled_w = (math.ceil(side * view.scale / stride) * stride for side in (height, width))
    return flow.nn.functional.pad(images, (0, filled_w - size[1], 0, filled_h - size[0]), value=BORDER_VALUE)


def back_to_image(rows: Array, view: View, width_px: int) -> Array:
    """Return predictions (B, N, 5 + nc) of a view in px of the image, a new array."""
    rows = rows.copy()
    rows[..., :4] /= np.float32(view.scale)
    if view.mirrored:
        rows[..., 0] = width_px - rows[..., 0]
    return rows

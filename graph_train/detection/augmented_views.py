"""Augmented inference as in YOLOv5: predictions at three scales, one of them mirrored, are concatenated before NMS."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_train.detection.inference import on_device, on_host
from kernels.ops.augmented_views.function import ViewRows, augmented_view, join_views
from kernels.plugin import is_loaded
from kernels.runtime import Tensor, flow
from models.layout import PIXEL_SCALE

Array = npt.NDArray[Any]

BORDER_VALUE = 0.447
"""Value of the border that pads a scaled image to a multiple of the stride: the mean of ImageNet, as in YOLOv5."""


@dataclass(frozen=True)
class InferenceView:
    """A view of an image: its scale, and whether it is mirrored left to right."""

    scale: float
    mirrored: bool


VIEWS = (InferenceView(1.0, False), InferenceView(0.83, True), InferenceView(0.67, False))


class AugmentedInference:
    """Inference on several views of each batch.

    Args:
        predict: maps images (B, 3, H, W), uint8 or float32 in [0, 1], to decoded predictions (B, N, 5 + nc) float32, an
            array or a tensor on the device, with the finest level first.
        strides: strides of the network's levels, finest first.
        grid_px: the sides of a view are multiples of it; by default the coarsest stride.
        device: the device on which views are computed.
    """

    def __init__(
        self,
        predict: Callable[[Tensor], Array | Tensor],
        strides: Sequence[int],
        *,
        grid_px: int | None = None,
        device: Any = "cpu",
    ) -> None:
        self._predict, self._strides, self._grid_px = predict, strides, grid_px or max(strides)
        self._device = device

    def __call__(self, images: Any, label_rows: Array) -> tuple[Array | Tensor, None]:
        """Return predictions of all views in px of the given images (B, 3, H, W) uint8; no loss is computed."""
        batch = on_device(images, self._device)
        parts = [self._predict(scaled(batch, view, self._grid_px)) for view in VIEWS]
        rows = [self._kept_rows(int(part.shape[1]), number) for number, part in enumerate(parts)]
        return joined(parts, rows, int(batch.shape[3])), None

    def _kept_rows(self, count: int, number: int) -> ViewRows:
        """Return the rows to keep: all except the coarsest level of the largest view and the finest of the smallest.

        Source: YOLOv5's augmented inference."""
        levels, view = len(self._strides), VIEWS[number]
        unit = count // sum(4**level for level in range(levels))
        first = unit * 4 ** (levels - 1) if number == len(VIEWS) - 1 else 0
        last = count - unit if number == 0 else count
        return ViewRows(first, last - first, view.scale, view.mirrored)


def scaled(images: Tensor, view: InferenceView, stride: int) -> Tensor:
    """Return a view of (B, 3, H, W) uint8 images, padded right and below to multiples of `stride`.

    The result is float32 in [0, 1], or for the unscaled, unmirrored view the images themselves.
    """
    if view == InferenceView(1.0, False):
        return images
    height, width = int(images.shape[2]), int(images.shape[3])
    size = (int(height * view.scale), int(width * view.scale))
    filled_h, filled_w = (math.ceil(side * view.scale / stride) * stride for side in (height, width))
    if is_loaded():
        return augmented_view(images, size, (filled_h, filled_w), mirrored=view.mirrored, border=BORDER_VALUE)
    values = images.to(flow.float32) / PIXEL_SCALE
    if view.mirrored:
        values = flow.flip(values, [3])
    values = flow.nn.functional.interpolate(values, size=size, mode="bilinear", align_corners=False)
    return flow.nn.functional.pad(values, (0, filled_w - size[1], 0, filled_h - size[0]), value=BORDER_VALUE)


def joined(parts: Sequence[Array | Tensor], rows: Sequence[ViewRows], width_px: int) -> Array | Tensor:
    """Concatenate the kept rows of all views' predictions (B, N, 5 + nc), in px of the image; arrays give an array."""
    if not is_loaded():
        rows_by_view = zip(parts, rows, strict=True)
        return np.concatenate([back_to_image(on_host(part), chosen, width_px) for part, chosen in rows_by_view], axis=1)
    tensors = [flow.from_numpy(part) if isinstance(part, np.ndarray) else part for part in parts]
    together = join_views(tensors, rows, width_px)
    return together.numpy() if isinstance(parts[0], np.ndarray) else together


def back_to_image(predictions: Array, rows: ViewRows, width_px: int) -> Array:
    """Return the kept rows of a view's predictions (B, N, 5 + nc) in px of the image, as a new array."""
    counted = predictions[:, rows.first : rows.first + rows.kept].copy()
    counted[..., :4] /= np.float32(rows.scale)
    if rows.mirrored:
        counted[..., 0] = width_px - counted[..., 0]
    return counted

"""Letterboxing of images, its inverse for boxes, and the shapes of rectangular batches."""

import math
from dataclasses import dataclass

import numpy as np

from pipelines.augmentation import boxes

BORDER_GREY = 114
"""Value of all three channels of the border."""


@dataclass(frozen=True)
class Letterbox:
    """The position of an image in its letterbox.

    Attributes:
        output_hw: size of the result in px.
        ratio_wh: scale from the image to the result.
        pad_wh: border on the left and at the top before rounding; multiples of 0.5.
        content_xyxy: the rectangle filled by the image, in integer px.
    """

    output_hw: tuple[int, int]
    ratio_wh: tuple[float, float]
    pad_wh: tuple[float, float]
    content_xyxy: tuple[int, int, int, int]


def letterbox(
    image_hw: tuple[int, int],
    target_hw: tuple[int, int],
    *,
    minimum_border: bool = False,
    stretch: bool = False,
    enlarge: bool = True,
    stride: int = 32,
) -> Letterbox:
    """Centre an image in a rectangle of its own or of a common aspect ratio.

    Args:
        image_hw, target_hw: height and width in px.
        minimum_border: add only as much border as is needed to make both sides multiples of `stride`.
        stretch: fill the target without keeping the aspect ratio (`minimum_border` takes precedence).
        enlarge: whether small images are enlarged; otherwise they only get a larger border.
        stride: see `minimum_border`.
    """
    ratio = min(target_hw[0] / image_hw[0], target_hw[1] / image_hw[1])
    if not enlarge:
        ratio = min(ratio, 1.0)
    ratio_wh = (ratio, ratio)
    # At least 1 px, even for very thin images.
    width, height = max(round(image_hw[1] * ratio), 1), max(round(image_hw[0] * ratio), 1)
    border_w, border_h = target_hw[1] - width, target_hw[0] - height
    if minimum_border:
        border_w, border_h = border_w % stride, border_h % stride
    elif stretch:
        border_w, border_h = 0, 0
        height, width = target_hw
        ratio_wh = (width / image_hw[1], height / image_hw[0])
    pad_w, pad_h = border_w / 2, border_h / 2
    left, top = round(pad_w - 0.1), round(pad_h - 0.1)
    right, bottom = round(pad_w + 0.1), round(pad_h + 0.1)
    return Letterbox(
        output_hw=(top + height + bottom, left + width + right),
        ratio_wh=ratio_wh,
        pad_wh=(pad_w, pad_h),
        content_xyxy=(left, top, left + width, top + height),
    )


def unletterbox_boxes(
    boxes_xyxy: np.ndarray,
    *,
    from_hw: tuple[int, int],
    to_hw: tuple[int, int],
    ratio_pad: tuple[float, tuple[float, float]] | None = None,
) -> np.ndarray:
    """Map boxes from a letterboxed image to the original image, and clip them to it.

    Args:
        boxes_xyxy: (n, 4) in px of the letterboxed image.
        from_hw: its size; used only without `ratio_pad`.
        to_hw: size of the original image.
        ratio_pad: the ratio and the pad (left, top) that were applied, if known; else they are derived.
    """
    if ratio_pad is None:
        ratio = min(from_hw[0] / to_hw[0], from_hw[1] / to_hw[1])
        pad = ((from_hw[1] - to_hw[1] * ratio) / 2, (from_hw[0] - to_hw[0] * ratio) / 2)
    else:
        ratio, pad = ratio_pad
    back = (boxes_xyxy - np.array(pad * 2, boxes_xyxy.dtype)) / np.array(ratio, boxes_xyxy.dtype)
    return boxes.clip(back, width=to_hw[1], height=to_hw[0])


def long_side_size(image_wh: tuple[int, int], image_px: int) -> tuple[int, int]:
    """Return the width and height of an image scaled to a long side of `image_px`; the other side is rounded up."""
    ratio = image_px / max(image_wh)
    width, height = (min(image_px, max(1, math.ceil(side * ratio))) for side in image_wh)
    return width, height


def rectangular_batches(
    sizes_wh: np.ndarray, *, batch_size: int, image_px: int, stride: int, pad_strides: float
) -> tuple[np.ndarray, np.ndarray]:
    """Group images with similar aspect ratios, so that batches need little border.

    Args:
        sizes_wh: (n, 2) in px.
        batch_size: images per batch.
        image_px: the longest side of any batch, without border.
        stride: batch shapes are multiples of it.
        pad_strides: extra border in strides, 0.5 for validation and 0 for training.
    Returns:
        order (n,) int64: image numbers, sorted by height over width (stable);
        shapes (batches, 2) int64: height and width of each batch.
    Source: YOLOv5's rectangular training.
    """
    aspect = sizes_wh[:, 1] / sizes_wh[:, 0]
    order = np.argsort(aspect, kind="stable")
    shapes = []
    for start in range(0, len(order), batch_size):
        group = aspect[order[start : start + batch_size]]
        low, high = float(group.min()), float(group.max())
        sides = np.array((high, 1.0) if high < 1 else (1.0, 1 / low) if low > 1 else (1.0, 1.0))
        shapes.append(np.ceil(sides * image_px / stride + pad_strides).astype(np.int64) * stride)
    return order.astype(np.int64), np.array(shapes, np.int64).reshape(-1, 2)

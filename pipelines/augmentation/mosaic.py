"""Layout of mosaics: four tiles around a random centre, or nine around one image."""

from collections.abc import Sequence
from dataclasses import dataclass

Size = tuple[int, int]
Rectangle = tuple[int, int, int, int]


@dataclass(frozen=True)
class Tile:
    """The position of a scaled image on a canvas.

    Attributes:
        size_wh: size of the scaled image in px.
        offset_xy: canvas position of its top left corner; may lie outside.
        rectangle: x1, y1, x2, y2 of the part of the canvas that it fills; empty (x1 == x2 or y1 == y2) if it is not
            visible.
    """

    size_wh: Size
    offset_xy: tuple[int, int]
    rectangle: Rectangle


def place(size_wh: Size, offset_xy: tuple[int, int], canvas_wh: Size) -> Tile:
    """Place an image and clip it to the canvas."""
    left, top = min(max(offset_xy[0], 0), canvas_wh[0]), min(max(offset_xy[1], 0), canvas_wh[1])
    right = max(left, min(offset_xy[0] + size_wh[0], canvas_wh[0]))
    bottom = max(top, min(offset_xy[1] + size_wh[1], canvas_wh[1]))
    return Tile(size_wh, offset_xy, (left, top, right, bottom))


def mosaic4(sizes_wh: Sequence[Size], *, centre_xy: tuple[int, int], image_px: int) -> list[Tile]:
    """Place four images meeting at a point of a canvas of twice the image size.

    Args:
        sizes_wh: scaled sizes in the order top left, top right, bottom left, bottom right.
        centre_xy: where they meet, in px of the canvas.
        image_px: half the side of the canvas.
    """
    x, y = centre_xy
    canvas = (2 * image_px, 2 * image_px)
    corners = ((-1, -1), (0, -1), (-1, 0), (0, 0))  # offset from the centre in widths and heights
    return [
        place(size, (x + across * size[0], y + down * size[1]), canvas)
        for size, (across, down) in zip(sizes_wh, corners, strict=True)
    ]


def mosaic9(sizes_wh: Sequence[Size], *, cut_xy: tuple[int, int], image_px: int) -> list[Tile]:
    """Place nine images in a ring around the first, seen through a window of twice the image size.

    Each image touches the previous one; the order is centre, top, top right, right, bottom right, bottom, bottom left,
    left, top left. If images of different aspect ratios overlap, the later one is on top; gaps are grey.

    Args:
        sizes_wh: scaled sizes in that order.
        cut_xy: top left corner of the window, in 0 ... image_px, on the inner 3 x 3 images.
        image_px: half the side of the window.
    Source: YOLOv5's nine-image mosaic.
    """
    s = image_px
    (w0, h0), (wp, hp) = sizes_wh[0], sizes_wh[0]
    window = (2 * s, 2 * s)
    placed = []
    for number, (w, h) in enumerate(sizes_wh):
        x, y = (
            (s, s),
            (s, s - h),
            (s + wp, s - h),
            (s + w0, s),
            (s + w0, s + hp),
            (s + w0 - w, s + h0),
            (s + w0 - wp - w, s + h0),
            (s - w, s + h0 - h),
            (s - w, s + h0 - hp - h),
        )[number]
        wp, hp = w, h
        placed.append(place((w, h), (x - cut_xy[0], y - cut_xy[1]), window))
    return placed

"""Rendering instructions for a sample: the parts of files to decode, and where to resize and place them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kernels.ops.drawing.function import Filter
from pipelines.augmentation import geometry
from pipelines.augmentation.mosaic import Rectangle, Size, Tile
from pipelines.augmentation.random_samples import SamplePlan, View

Span = tuple[float, float]

_AVERAGE_BELOW = 2 / 3
"""Tiles that shrink more than this are averaged, others are sampled. YOLOv5 always samples, but in two steps (file to
image size, then the random scale), so that it skips fewer pixels."""


@dataclass(frozen=True)
class TileRender:
    """A part of an image to place on a canvas; positions are (row, column) in px.

    Attributes:
        source: index of the image.
        crop_start, crop_shape: part of the image to decode, including all pixels needed for resampling.
        region_start, region_end: part of the crop that is resized, fractional; start > end mirrors that axis.
        shape: size after resizing.
        anchor: position of its top left pixel on the canvas.
        by_area: whether to average by exact areas when shrinking, as OpenCV's INTER_AREA; DALI has no such filter and
            uses a triangle, except at half the size.
    """

    source: int
    crop_start: tuple[int, int]
    crop_shape: tuple[int, int]
    region_start: tuple[float, float]
    region_end: tuple[float, float]
    shape: tuple[int, int]
    anchor: tuple[int, int]
    by_area: bool = False

    @property
    def filter(self) -> Filter:
        """The resampling filter of the plugin's kernel."""
        if self.by_area:
            return "area"
        return "triangle" if self.shrinks else "linear"

    @property
    def shrinks(self) -> bool:
        """Whether a region shrinks so much that pixels are averaged instead of sampled.

        At exactly half the size, linear sampling is the mean of 2 x 2 pixels, as by area.
        """
        sides = [abs(end - start) for start, end in zip(self.region_start, self.region_end, strict=True)]
        if self.by_area and sides == [2 * side for side in self.shape]:
            return False
        return self.shape[0] * self.shape[1] < _AVERAGE_BELOW**2 * sides[0] * sides[1]


@dataclass(frozen=True)
class ViewRender:
    """A grey canvas with tiles, later ones on top, and its warp.

    Attributes:
        tiles: the visible tiles.
        canvas_hw: size in px.
        warp: (3, 3) float32 map from output px to canvas px; None if the canvas is the output.
        output_hw: size in px.
        pasted: polygons in px of the canvas, inside which it is replaced by its mirror image; only with a warp.
    """

    tiles: tuple[TileRender, ...]
    canvas_hw: tuple[int, int]
    warp: np.ndarray | None
    output_hw: tuple[int, int]
    pasted: tuple[np.ndarray, ...] = ()


def flip_matrix(output_wh: Size, *, up_down: bool, left_right: bool) -> np.ndarray:
    """Return the (3, 3) transform that flips an output."""
    matrix = np.eye(3)
    if left_right:
        matrix[0] = -1.0, 0.0, output_wh[0]
    if up_down:
        matrix[1] = 0.0, -1.0, output_wh[1]
    return matrix


def render_sample(plan: SamplePlan, sizes: Sequence[Size], *, warp: bool) -> tuple[ViewRender, ...]:
    """Return the rendering of each view of a sample, including flips.

    Args:
        plan: the sample.
        sizes: width and height of all images.
        warp: whether to draw the canvas and warp it. Otherwise tiles are placed directly on the output, which gives the
            same picture with a single resampling, but requires axis-aligned views without copy-paste.
    """
    flip = flip_matrix(plan.output_wh, up_down=plan.flip_up_down, left_right=plan.flip_left_right)
    render = _warped_view if warp else _direct_view
    return tuple(render(view, flip @ view.matrix, sizes) for view in plan.views)


def _direct_view(view: View, matrix: np.ndarray, sizes: Sequence[Size]) -> ViewRender:
    assert geometry.is_axis_aligned(matrix), "rotation, shear and perspective need a warp"
    tiles = [
        _tile(source, placed, sizes[source], matrix, view.output_wh)
        for source, placed in zip(view.sources, view.placements, strict=True)
    ]
    output_hw = (view.output_wh[1], view.output_wh[0])
    return ViewRender(tuple(t for t in tiles if t is not None), output_hw, None, output_hw)


def _warped_view(view: View, matrix: np.ndarray, sizes: Sequence[Size]) -> ViewRender:
    back = np.linalg.inv(matrix)
    # Pasted objects come from the mirror image of the whole canvas.
    left, top, right, bottom = (0, 0, *view.canvas_wh) if view.pasted else _visible_canvas(back, view)
    shift = np.array(((1.0, 0.0, -left), (0.0, 1.0, -top), (0.0, 0.0, 1.0)))
    canvas_wh = (right - left, bottom - top)
    tiles = [
        _tile(source, placed, sizes[source], shift, canvas_wh)
        for source, placed in zip(view.sources, view.placements, strict=True)
    ]
    return ViewRender(
        tiles=tuple(t for t in tiles if t is not None),
        canvas_hw=(canvas_wh[1], canvas_wh[0]),
        warp=(shift @ back).astype(np.float32),
        output_hw=(view.output_wh[1], view.output_wh[0]),
        pasted=tuple(pasted.polygon for pasted in view.pasted),
    )


def _visible_canvas(back: np.ndarray, view: View) -> Rectangle:
    """Return the part of the canvas that is visible in the output, plus a border of one pixel for interpolation."""
    width, height = view.output_wh
    corners = np.array(((0, 0), (width, 0), (0, height), (width, height)), np.float64)
    depths = corners @ back[2, :2] + back[2, 2]
    if depths.min() <= 0:  # the horizon crosses the output, so the visible part of the canvas is unbounded
        return 0, 0, view.canvas_wh[0], view.canvas_wh[1]
    seen = geometry.map_points(back, corners)
    low, high = np.floor(seen.min(axis=0)) - 1, np.ceil(seen.max(axis=0)) + 1
    # At least one pixel, even if only the border is visible.
    left, top = (int(min(max(low[axis], 0), view.canvas_wh[axis] - 1)) for axis in range(2))
    right, bottom = (int(max(min(high[axis], view.canvas_wh[axis]), (left, top)[axis] + 1)) for axis in range(2))
    return left, top, right, bottom


def _tile(
    source: int, placed: Tile, image_wh: Size, matrix: np.ndarray, output_wh: Size, *, by_area: bool = False
) -> TileRender | None:
    """Return the tile of a placed image under an axis-aligned transform; None if it is not visible."""
    axes = [_axis(placed, axis, image_wh[axis], matrix, output_wh[axis]) for axis in (1, 0)]
    if axes[0] is None or axes[1] is None:
        return None
    rows, columns = axes[0], axes[1]
    return TileRender(
        source=source,
        crop_start=(rows.crop_start, columns.crop_start),
        crop_shape=(rows.crop_length, columns.crop_length),
        region_start=(rows.region[0] - rows.crop_start, columns.region[0] - columns.crop_start),
        region_end=(rows.region[1] - rows.crop_start, columns.region[1] - columns.crop_start),
        shape=(rows.length, columns.length),
        anchor=(rows.anchor, columns.anchor),
        by_area=by_area,
    )


@dataclass(frozen=True)
class _Axis:
    anchor: int
    length: int
    region: Span
    crop_start: int
    crop_length: int


def _axis(placed: Tile, axis: int, image_side: int, matrix: np.ndarray, output_side: int) -> _Axis | None:
    scale, shift = float(matrix[axis, axis]), float(matrix[axis, 2])
    edges = sorted((placed.rectangle[axis] * scale + shift, placed.rectangle[axis + 2] * scale + shift))
    # Neighbours share an edge and therefore its rounding: no gap, no overlap.
    first, last = (min(max(round(edge), 0), output_side) for edge in edges)
    if first >= last or placed.rectangle[axis] >= placed.rectangle[axis + 2]:
        return None
    per_px = image_side / placed.size_wh[axis]
    start, end = (((px - shift) / scale - placed.offset_xy[axis]) * per_px for px in (first, last))
    reach = math.ceil(abs(end - start) / (last - first)) + 1  # of the resampling filter, in image px
    low = min(max(math.floor(min(start, end)) - reach, 0), image_side - 1)
    high = max(min(math.ceil(max(start, end)) + reach, image_side), low + 1)
    return _Axis(first, last - first, (start, end), low, high - low)


def placed_image(source: int, placed: Tile, image_wh: Size, output_wh: Size, *, by_area: bool = False) -> ViewRender:
    """Render an image at its position directly on the output; for `by_area` see `TileRender`."""
    tile = _tile(source, placed, image_wh, np.eye(3), output_wh, by_area=by_area)
    assert tile is not None, "a letterboxed image is always visible"
    output_hw = (output_wh[1], output_wh[0])
    return ViewRender((tile,), output_hw, None, output_hw)

"""Resampling of an image region to pixels: the reference in NumPy and the plugin's kernel, bitwise equal.

A target pixel is the weighted mean of source pixels around its centre, along each axis: two neighbours weighted by
distance ("linear"); or, if a region shrinks, all pixels under a triangle twice as wide as a target pixel ("triangle",
for antialiasing), or all that the target pixel covers, weighted by area ("area", OpenCV's INTER_AREA). Beyond the
edges, the outermost pixels are repeated. Weights are rounded to 11 bits with an exact sum, and all sums are integers,
so no order of evaluation can change a bit.
"""

import ctypes
import math
from typing import Literal, get_args

import numpy as np

from kernels.plugin import plugin_library

Region = tuple[float, float, float, float]
Filter = Literal["linear", "triangle", "area"]
_BITS = 11
_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64


def draw_region(crop: np.ndarray, region: Region, target: np.ndarray, *, filter: Filter) -> None:
    """Resample a region of an image to planar pixels.

    Args:
        crop: (h, w, 3) uint8; contiguous pixels and channels.
        region: top, left, bottom, right in px of the crop, fractional; top > bottom or left > right mirrors it.
        target: (3, rows, columns) uint8 output; rows must be contiguous.
        filter: see the module's docstring.
    Raises:
        ValueError: the plugin is not loaded, or shapes, types or layout differ from the above.
    """
    if crop.ndim != 3 or crop.shape[2] != 3 or crop.dtype != np.uint8 or crop.strides[1:] != (3, 1):
        raise ValueError(f"crop {crop.dtype} {crop.shape}: must be uint8 (h, w, 3) with contiguous rows")
    if target.ndim != 3 or target.shape[0] != 3 or target.dtype != np.uint8 or target.strides[2] != 1:
        raise ValueError(f"target {target.dtype} {target.shape}: must be uint8 (3, h, w) with contiguous rows")
    if 0 in crop.shape or 0 in target.shape or not target.flags.writeable:
        raise ValueError(
            f"crop {crop.shape}, target {target.shape}: must not be empty, and the target must be writable"
        )
    if not all(math.isfinite(edge) for edge in region):
        raise ValueError(f"region {region}: must be finite")
    edges = (ctypes.c_double * 4)(*region)
    draw = plugin_library().graph_train_draw_region
    draw.restype = None
    draw.argtypes = (_POINTER, *[_NUMBER] * 3, ctypes.c_double * 4, *[_NUMBER] * 3, _POINTER, *[_NUMBER] * 2)
    source = (crop.ctypes.data, *crop.shape[:2], crop.strides[0])
    destination = (*target.shape[1:3], target.ctypes.data, *target.strides[:2])
    draw(*source, edges, _number(filter), *destination)


def draw_region_reference(crop: np.ndarray, region: Region, shape: tuple[int, ...], *, filter: Filter) -> np.ndarray:
    """Return (3, rows, columns) uint8, the slow reference of `draw_region`.

    Args:
        crop, region, filter: as for `draw_region`.
        shape: rows and columns of the result.
    """
    down, row_weights = axis_weights(crop.shape[0], region[0], region[2], shape[0], filter=filter)
    across, column_weights = axis_weights(crop.shape[1], region[1], region[3], shape[1], filter=filter)
    source = crop.astype(np.int32)
    rows = sum(row_weights[:, k, None, None] * source[down + k] for k in range(row_weights.shape[1]))
    summed = np.asarray(rows).transpose(2, 0, 1)
    pixels = sum(column_weights[:, k] * summed[..., across + k] for k in range(column_weights.shape[1]))
    return ((np.asarray(pixels) + (1 << 2 * _BITS - 1)) >> 2 * _BITS).astype(np.uint8)


def _number(filter: Filter) -> int:
    return get_args(Filter).index(filter)


def axis_weights(
    source: int, begin: float, end: float, target: int, *, filter: Filter
) -> tuple[np.ndarray, np.ndarray]:
    """Return the source pixels and weights of each target pixel along one axis.

    Args:
        source: number of source pixels.
        begin, end: the region that becomes `target` pixels.
        filter: as for `draw_region`.
    Returns:
        (target,) int64 first source pixel; (target, taps) int32 weights of the pixels from there, with row sum 2^11.
    """
    step = (end - begin) / target
    wide = max(1.0, abs(step))
    reach = {"linear": 1.0, "triangle": wide, "area": (wide + 1.0) / 2.0}[filter]
    # Triangle: the weight is its height. Area: the covered part of each source pixel.
    slope = 1.0 if filter == "area" else reach
    max_taps = math.ceil(2.0 * reach)
    taps = min(max_taps, source)
    centre = begin + (np.arange(target) + 0.5) * step
    first = np.ceil(centre - 0.5 - reach).astype(np.int64)
    start = np.clip(first, 0, source - taps)
    shares, total = np.zeros((target, taps)), np.zeros(target)
    for k in range(max_taps):
        share = np.clip((reach - np.abs((first + k) + 0.5 - centre)) / slope, 0.0, 1.0)
        shares[np.arange(target), np.clip(first + k, start, start + taps - 1) - start] += share
        total += share
    weights = np.floor(shares / total[:, None] * (1 << _BITS) + 0.5).astype(np.int32)
    weights[np.arange(target), weights.argmax(axis=1)] += (1 << _BITS) - weights.sum(axis=1, dtype=np.int32)
    return start, weights

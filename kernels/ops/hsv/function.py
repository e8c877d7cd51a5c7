"""Colour augmentation of an image by the plugin, bitwise equal to `pipelines.pixels.colour`."""

import ctypes

import numpy as np

from kernels.plugin import plugin_library

_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64


def write_planes(picture: np.ndarray, tables: np.ndarray | None, target: np.ndarray) -> None:
    """Apply hue, saturation and value tables to an image and write it as planes.

    Args:
        picture: (h, w, 3) uint8 RGB with any strides; may be a view of the target's planes.
        tables: (3, 256) uint8; hue entries below 180. None keeps colours unchanged.
        target: (3, h, w) uint8 output; may be a window of a larger array, with contiguous rows.
    Raises:
        ValueError: the plugin is not loaded, or shapes, types or layout differ from the above.
    """
    height, width = picture.shape[:2]
    if picture.shape != (height, width, 3) or target.shape != (3, height, width):
        raise ValueError(f"picture {picture.shape} and planes {target.shape}: must be (h, w, 3) and (3, h, w)")
    if picture.dtype != np.uint8 or target.dtype != np.uint8 or not target.flags.writeable:
        raise ValueError(f"picture {picture.dtype} and planes {target.dtype}: both must be uint8, the planes writable")
    if target.strides[2] != 1:
        raise ValueError(f"planes with strides {target.strides}: rows must be contiguous")
    if tables is not None:
        if tables.shape != (3, 256) or tables.dtype != np.uint8 or tables[0].max() >= 180:
            raise ValueError(f"tables {tables.dtype} {tables.shape}: must be uint8 (3, 256) with hues below 180")
        tables = np.ascontiguousarray(tables)
    interleaved = picture.strides[1:] == (3, 1)
    if not interleaved and (tables is None or picture.strides[1] != 1):
        picture, interleaved = np.ascontiguousarray(picture), True
    library = plugin_library()
    to = (target.ctypes.data, target.strides[0], target.strides[1])
    if tables is None:
        split = library.graph_train_split_planes
        split.restype, split.argtypes = None, (_POINTER, *[_NUMBER] * 3, _POINTER, *[_NUMBER] * 2)
        split(picture.ctypes.data, height, width, picture.strides[0], *to)
        return
    gains = library.graph_train_hsv_planes
    gains.restype, gains.argtypes = None, (_POINTER, *[_NUMBER] * 5, _POINTER, _POINTER, *[_NUMBER] * 2)
    gains(picture.ctypes.data, height, width, *picture.strides, tables.ctypes.data, *to)

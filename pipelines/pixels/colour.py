"""Colour augmentation as in YOLOv5: gains on 8-bit hue, saturation and value through look-up tables."""

import numpy as np

import kernels.ops.hsv.function
import kernels.plugin


def hsv_tables(gains: np.ndarray) -> np.ndarray:
    """Return (3, 256) uint8 look-up tables for hue (0 ... 179, two degrees each), saturation and value.

    Args:
        gains: (3,) factors for hue, saturation and value.
    """
    level = np.arange(256, dtype=np.float64)
    hue, saturation, value = (level * gain for gain in np.asarray(gains, np.float64))
    return np.stack((hue % 180, np.clip(saturation, 0, 255), np.clip(value, 0, 255))).astype(np.uint8)


def rgb_to_hsv(rgb: np.ndarray) -> np.ndarray:
    """Convert (..., 3) uint8 RGB to (..., 3) uint8 hue (0 ... 179), saturation, value, by the hexcone model.

    Divisions are multiplications by reciprocals with 12 fractional bits, as in OpenCV's 8-bit conversion, so that hue
    is rounded in the same way; an exact division would sometimes give a neighbouring level.
    """
    r, g, b = np.moveaxis(rgb.astype(np.int64), -1, 0)
    value, low = rgb.max(axis=-1).astype(np.int64), rgb.min(axis=-1).astype(np.int64)
    spread = value - low
    turn = np.where(value == r, g - b, np.where(value == g, b - r + 2 * spread, r - g + 4 * spread))
    hue = _scaled(turn, 30, spread)
    return np.stack((np.where(hue < 0, hue + 180, hue), _scaled(spread, 255, value), value), axis=-1).astype(np.uint8)


def _scaled(number: np.ndarray, factor: int, divisor: np.ndarray) -> np.ndarray:
    """Return number * factor / divisor, rounded, with a reciprocal of 12 fractional bits; 0 where the divisor is 0."""
    reciprocal = np.rint((factor << 12) / np.maximum(divisor, 1)).astype(np.int64)
    return np.where(divisor == 0, 0, (number * reciprocal + (1 << 11)) >> 12)


def hsv_to_rgb(hsv: np.ndarray) -> np.ndarray:
    """Convert (..., 3) uint8 hue (0 ... 179), saturation, value to (..., 3) uint8 RGB, rounded to the nearest."""
    hue, saturation, value = np.moveaxis(hsv.astype(np.int32), -1, 0)
    # Channel c falls from the value by the full chroma over one sector of the hexagon; channels are 120 degrees apart.
    position = (hue[..., None] + np.array((150, 90, 30), np.int32)) % 180
    fall = np.clip(np.minimum(position, 120 - position), 0, 30)
    # Offset by half a unit from all level boundaries, so that rounding of the product cannot cross one.
    shifted = (value[..., None] * (7650 - saturation[..., None] * fall) + 3825).astype(np.float32) + np.float32(0.5)
    return (shifted * np.float32(1 / 7650)).astype(np.uint8)


def apply_tables(rgb: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """Apply the (3, 256) tables of `hsv_tables` to hue, saturation and value of (..., 3) uint8 RGB."""
    hsv = rgb_to_hsv(rgb)
    return hsv_to_rgb(np.stack([tables[channel][hsv[..., channel]] for channel in range(3)], axis=-1))


def mix_images(first: np.ndarray, second: np.ndarray, ratio: float) -> np.ndarray:
    """Blend two uint8 images of the same shape with weight `ratio` for the first, rounded down as in YOLOv5."""
    return (first * ratio + second * (1 - ratio)).astype(np.uint8)


def finish_picture(
    views: list[np.ndarray], mix_ratio: float, hsv_gains: tuple[float, float, float] | None, target: np.ndarray
) -> None:
    """Blend one or two views, apply the colour gains, and write the result with channels first.

    Args:
        views: (h, w, 3) uint8 RGB each, of the same shape.
        mix_ratio: weight of the first view; results are rounded down as in YOLOv5.
        hsv_gains: factors of hue, saturation, value; None leaves colours unchanged.
        target: (3, h, w) uint8 output with contiguous rows.
    """
    picture = np.asarray(views[0])
    if len(views) == 2:
        picture = mix_images(views[0], views[1], mix_ratio)
    tables = None if hsv_gains is None else hsv_tables(np.asarray(hsv_gains))
    # The plugin's function gives the same bytes as the lines below, faster.
    if kernels.plugin.is_loaded():
        kernels.ops.hsv.function.write_planes(picture, tables, target)
    else:
        target[...] = (picture if tables is None else apply_tables(picture, tables)).transpose(2, 0, 1)

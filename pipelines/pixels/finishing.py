"""Blending, colour gains, layout as DALI operators: for a GPU what `pipelines.pixels.colour` does on the host.

All arithmetic is in float32 on 8-bit levels and rounds where the tables of `pipelines.pixels.colour` round, so
that both give the same picture but for single levels of hue.
"""

from typing import Any

from nvidia.dali import fn, types
from nvidia.dali import math as dali_math

_FULL_CHROMA = 7650.0  # 255 levels of saturation times 30 levels of hue in a sector


def blend(first: Any, second: Any, ratio: Any) -> Any:
    """first * ratio + second * (1 - ratio), rounded down; (h, w, 3) uint8 pictures, a scalar per picture."""
    return fn.cast(dali_math.floor(first * ratio + second * (1.0 - ratio)), dtype=types.UINT8)


def planes(picture: Any) -> Any:
    """(h, w, 3) to (3, h, w)."""
    return fn.transpose(picture, perm=(2, 0, 1))


def gain_planes(picture: Any, hue_gain: Any, saturation_gain: Any, value_gain: Any) -> Any:
    """(h, w, 3) uint8 RGB to (3, h, w) uint8 after gains on hue, saturation and value; a scalar each per picture."""
    hue, saturation, value = _to_hsv(picture)
    turned = hue * hue_gain
    turned = dali_math.floor(turned - 180.0 * dali_math.floor(turned / 180.0))
    saturation = dali_math.floor(dali_math.min(saturation * saturation_gain, 255.0))
    value = dali_math.floor(dali_math.min(value * value_gain, 255.0))
    rgb = [_channel(turned, saturation, value, offset) for offset in (150.0, 90.0, 30.0)]
    return fn.cast(fn.reshape(fn.stack(*rgb, axis=0), layout="CHW"), dtype=types.UINT8)


def _to_hsv(picture: Any) -> tuple[Any, Any, Any]:
    levels = fn.cast(picture, dtype=types.FLOAT)
    red, green, blue = (levels[:, :, channel] for channel in range(3))
    high = dali_math.max(dali_math.max(red, green), blue)
    spread = high - dali_math.min(dali_math.min(red, green), blue)
    by_red = fn.cast(high == red, dtype=types.FLOAT)
    by_green = fn.cast(high == green, dtype=types.FLOAT) * (1.0 - by_red)
    turn = (
        by_red * (green - blue)
        + by_green * (blue - red + 2.0 * spread)
        + (1.0 - by_red - by_green) * (red - green + 4.0 * spread)
    )
    hue = dali_math.floor(turn * 30.0 / dali_math.max(spread, 1.0) + 0.5)
    hue = hue + 180.0 * fn.cast(hue < 0.0, dtype=types.FLOAT)
    saturation = dali_math.floor(spread * 255.0 / dali_math.max(high, 1.0) + 0.5)
    return hue, saturation, high


def _channel(hue: Any, saturation: Any, value: Any, offset: float) -> Any:
    position = hue + offset
    position = position - 180.0 * fn.cast(position >= 180.0, dtype=types.FLOAT)
    fall = dali_math.clamp(dali_math.min(position, 120.0 - position), 0.0, 30.0)
    return dali_math.floor((value * (_FULL_CHROMA - saturation * fall) + (_FULL_CHROMA + 1) / 2) / _FULL_CHROMA)

"""Blending, colour gains and layout as DALI operators, like `pipelines.pixels.colour` on the host.

Conversions are rounded as in `pipelines.pixels.colour`, with integers where float32 is not exact, and blending is done
in float64. Gains are float32 here and float64 there, so some levels may differ by one.
"""

from typing import Any

from nvidia.dali import fn, types
from nvidia.dali import math as dali_math

_FULL_CHROMA = 7650.0  # 255 levels of saturation times 30 levels of hue in a sector
_UNIT = 1 << 12  # scale of the reciprocals that replace divisions


def blend(first: Any, second: Any, ratio: Any) -> Any:
    """Return first * ratio + second * (1 - ratio), rounded down.

    Pictures are (h, w, 3) uint8; `ratio` is a float64 scalar per picture.
    """
    return fn.cast(dali_math.floor(first * ratio + second * (1.0 - ratio)), dtype=types.UINT8)


def planes(picture: Any) -> Any:
    """Move channels first: (h, w, 3) to (3, h, w)."""
    return fn.transpose(picture, perm=(2, 0, 1))


def apply_gains(picture: Any, hue_gain: Any, saturation_gain: Any, value_gain: Any) -> Any:
    """Apply gains on hue, saturation and value to (h, w, 3) uint8 RGB; gains are float32 scalars per image."""
    hue, saturation, value = _to_hsv(picture)
    turned = hue * hue_gain
    turned = dali_math.floor(turned - 180.0 * dali_math.floor(turned / 180.0))
    saturation = dali_math.floor(dali_math.min(saturation * saturation_gain, 255.0))
    value = dali_math.floor(dali_math.min(value * value_gain, 255.0))
    rgb = [_channel(turned, saturation, value, offset) for offset in (150.0, 90.0, 30.0)]
    return fn.reshape(fn.cast(fn.stack(*rgb, axis=2), dtype=types.UINT8), layout="HWC")


def _to_hsv(picture: Any) -> tuple[Any, Any, Any]:
    """Return (h, w) int32 hue (0 ... 179), saturation, value."""
    levels = fn.cast(picture, dtype=types.INT32)
    red, green, blue = (levels[:, :, channel] for channel in range(3))
    high = dali_math.max(dali_math.max(red, green), blue)
    spread = high - dali_math.min(dali_math.min(red, green), blue)
    by_red = fn.cast(high == red, dtype=types.INT32)
    by_green = fn.cast(high == green, dtype=types.INT32) * (1 - by_red)
    turn = (
        by_red * (green - blue)
        + by_green * (blue - red + 2 * spread)
        + (1 - by_red - by_green) * (red - green + 4 * spread)
    )
    hue = _scaled(turn, 30, spread)
    return hue + 180 * fn.cast(hue < 0, dtype=types.INT32), _scaled(spread, 255, high), high


def _scaled(number: Any, factor: int, divisor: Any) -> Any:
    """Return number * factor / divisor, rounded, with a reciprocal of 12 fractional bits; 0 where number is 0.

    Args:
        number: int32, at least -divisor.
        factor: an integer.
        divisor: int32, 0 ... 255, and 0 only where number is.
    """
    reciprocal = fn.cast(dali_math.floor(float(factor * _UNIT) / dali_math.max(divisor, 1) + 0.5), dtype=types.INT32)
    # Whole units on top keep the numerator positive, as the division rounds towards 0.
    lift = factor + 1
    return (number * reciprocal + (_UNIT // 2 + lift * _UNIT)) // _UNIT - lift


def _channel(hue: Any, saturation: Any, value: Any, offset: float) -> Any:
    position = hue + offset
    position = position - 180.0 * fn.cast(position >= 180.0, dtype=types.FLOAT)
    fall = dali_math.clamp(dali_math.min(position, 120.0 - position), 0.0, 30.0)
    return dali_math.floor((value * (_FULL_CHROMA - saturation * fall) + (_FULL_CHROMA + 1) / 2) / _FULL_CHROMA)

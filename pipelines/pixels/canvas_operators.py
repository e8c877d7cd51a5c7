"""DALI operators from encoded tiles to finished batch images.

All except `composite_on_cpu` work identically on the CPU and on GPUs, so that tests on a CPU cover the GPU's graph.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali import math as dali_math

from pipelines.augmentation.letterbox import BORDER_GREY
from pipelines.pixels import finishing
from pipelines.pixels.backend import Backend
from pipelines.pixels.decoding import decoded_crop, external_input

GAINS = ("hue_gain", "saturation_gain", "value_gain")
QUARTERS = 4

_LEVELS = 256
"""Distance between layers: a value is its layer times this, plus its 8-bit level."""


def tile(slot: int, backend: Backend, *, decoded: bool) -> Any:
    """Return the resampled tile of a slot, (h, w, 3) uint8.

    Args:
        slot: index of the tile in its view.
        backend: the device.
        decoded: whether the input is the pixels of the crop; otherwise it is the encoded image.
    """
    if decoded:
        crop = backend.place(external_input(f"image{slot}", types.UINT8, 3, layout="HWC"))
    else:
        crop_start, crop_shape = (
            external_input(f"{name}{slot}", types.INT32, 1) for name in ("crop_start", "crop_shape")
        )
        crop = decoded_crop(external_input(f"image{slot}", types.UINT8, 1), crop_start, crop_shape, backend)
    shape, start, end = (
        external_input(f"{name}{slot}", types.FLOAT, 1) for name in ("shape", "region_start", "region_end")
    )
    sampling = external_input(f"sampling{slot}", types.FLOAT, 2)
    # DALI converts this statement to a split of the batch, so that each tile passes one of the two operators.
    if external_input(f"shrinks{slot}", types.BOOL, 0):
        resampled = fn.resize(crop, roi_start=start, roi_end=end, size=shape)
    else:
        resampled = fn.experimental.warp_perspective(crop, matrix=sampling, size=shape, border_mode="replicate")
    return resampled


def composite_on_cpu(tiles: Sequence[Any]) -> Any:
    """Place the tiles on a grey canvas like `composite`, but faster and only on a CPU.

    On a GPU, `fn.multi_paste` reads all inputs with the shape of the first one, and an empty area covers the canvas.
    """
    canvas_hw = external_input("canvas", types.INT32, 1)
    dot = fn.reshape(types.Constant(np.full((1, 1, 3), BORDER_GREY, np.uint8), device="cpu"), layout="HWC")
    grey = fn.slice(
        dot, start=(0, 0), shape=canvas_hw, axes=(0, 1), out_of_bounds_policy="pad", fill_values=BORDER_GREY
    )
    return fn.multi_paste(
        grey,
        *tiles,
        out_anchors=external_input("anchors", types.INT32, 2),
        shapes=external_input("areas", types.INT32, 2),
        output_size=canvas_hw,
    )


def composite(tiles: Sequence[Any]) -> Any:
    """Place the tiles on a grey canvas (h, w, 3) uint8, later ones on top.

    Each tile is padded to the canvas, and the maximum over all tiles is taken. So that later tiles are on top, the
    tile's index is added above its 8-bit levels; grey is below all of them.
    """
    canvas_hw = external_input("canvas", types.INT32, 1)
    if len(tiles) == 1:
        return _on_canvas(tiles[0], 0, canvas_hw)
    canvas = None
    for slot, levels in enumerate(tiles):
        numbered = levels + types.Constant(_LEVELS * (slot + 1), dtype=types.INT16)
        layer = _on_canvas(numbered, slot, canvas_hw)
        canvas = layer if canvas is None else dali_math.max(canvas, layer)
    return fn.cast(canvas & types.Constant(_LEVELS - 1, dtype=types.INT16), dtype=types.UINT8)


def _on_canvas(levels: Any, slot: int, canvas_hw: Any) -> Any:
    return fn.slice(
        levels,
        start=external_input(f"canvas_start{slot}", types.INT32, 1),
        shape=canvas_hw,
        axes=(0, 1),
        out_of_bounds_policy="pad",
        fill_values=BORDER_GREY,
    )


def pasted(canvas: Any, backend: Backend) -> Any:
    """Return the canvas with copy-paste applied: its mirror image where the mask is 1."""
    mask = backend.place(external_input("mask", types.UINT8, 3))
    if external_input("pastes", types.BOOL, 0):
        rest = fn.cast(mask == 0, dtype=types.UINT8)
        replaced = canvas * rest + fn.flip(canvas, horizontal=1) * mask
    else:
        replaced = canvas
    return replaced


def warped(canvas: Any) -> Any:
    """Warp a canvas to the output."""
    return fn.experimental.warp_perspective(
        canvas,
        matrix=external_input("warp", types.FLOAT, 2),
        size=external_input("output", types.FLOAT, 1),
        fill_value=float(BORDER_GREY),
    )


def finished(canvas: Any, backend: Backend) -> Any:
    """Blend with the partner, apply colour gains, and convert to (3, h, w) uint8."""
    ratio = backend.place(external_input("mix_ratio", types.FLOAT64, 0))
    gains = [backend.place(external_input(name, types.FLOAT, 0)) for name in GAINS]
    partner = fn.permute_batch(canvas, indices=external_input("partner", types.INT32, 0))
    if external_input("blended", types.BOOL, 0):  # noqa: SIM108 - DALI rewrites statements, not expressions
        picture = finishing.blend(canvas, partner, ratio)
    else:
        picture = canvas
    if external_input("coloured", types.BOOL, 0):
        picture = finishing.apply_gains(picture, *gains)
    # Last and unconditional: merging a split leaves several blocks of memory, which this combines.
    return finishing.planes(picture)


def joined_quarters(pictures: Any) -> Any:
    """Join four windows (3, h, w) of pictures of the batch to an image (3, 2h, 2w)."""
    quarters, shape = [], external_input("quarter_hw", types.INT32, 1)
    for quarter in range(QUARTERS):
        picture = fn.permute_batch(pictures, indices=external_input(f"quarter{quarter}", types.INT32, 0))
        window = external_input(f"quarter_start{quarter}", types.INT32, 1)
        quarters.append(fn.slice(picture, start=window, shape=shape, axes=(1, 2)))
    rows = [fn.cat(*quarters[:2], axis=2), fn.cat(*quarters[2:], axis=2)]
    return fn.cat(*rows, axis=1)


def gains_of(rows: Sequence[tuple[float, float, float] | None]) -> dict[str, np.ndarray]:
    """Return the inputs with the names in `GAINS`, (n,) float32 each; 1 where colours are unchanged."""
    gains = np.array([row or (1.0, 1.0, 1.0) for row in rows], np.float32)
    return {name: np.ascontiguousarray(gains[:, channel]) for channel, name in enumerate(GAINS)}

"""The DALI operators between encoded tiles and finished batch images.

All but `laid_out_on_host` exist for the CPU and for GPUs and mean the same on both, so that a CPU proves a GPU's graph.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali import math as dali_math

from pipelines.augmentation.letterbox import BORDER_GREY
from pipelines.pixels import finishing
from pipelines.pixels.backend import Backend
from pipelines.pixels.decoding import decoded_crop, given

GAINS = ("hue_gain", "saturation_gain", "value_gain")
QUARTERS = 4

_LEVELS = 256
"""Distance between layers: what is above 255 is the layer, the rest the level."""


def tile(slot: int, backend: Backend, *, decoded: bool) -> Any:
    """Return (h, w, 3) uint8: the resampled tile of a slot.

    Args:
        slot: number of the tile within its view.
        backend: where it is drawn.
        decoded: whether pixels of the crop are given; otherwise bytes of the image.
    """
    if decoded:
        crop = backend.place(given(f"image{slot}", types.UINT8, 3, layout="HWC"))
    else:
        crop_start, crop_shape = (given(f"{name}{slot}", types.INT32, 1) for name in ("crop_start", "crop_shape"))
        crop = decoded_crop(given(f"image{slot}", types.UINT8, 1), crop_start, crop_shape, backend)
    shape, start, end = (given(f"{name}{slot}", types.FLOAT, 1) for name in ("shape", "region_start", "region_end"))
    sampling = given(f"sampling{slot}", types.FLOAT, 2)
    # DALI rewrites such statements into splits of the batch: each tile goes through one of the two operators.
    if given(f"shrinks{slot}", types.BOOL, 0):
        drawn = fn.resize(crop, roi_start=start, roi_end=end, size=shape)
    else:
        drawn = fn.experimental.warp_perspective(crop, matrix=sampling, size=shape, border_mode="replicate")
    return drawn


def laid_out_on_host(tiles: Sequence[Any]) -> Any:
    """Do as `layered`, faster and only on a CPU: on a GPU `fn.multi_paste` reads all inputs with the shape of the
    first one, and an empty area, as of a slot without a tile, covers the whole canvas."""
    canvas_hw = given("canvas", types.INT32, 1)
    dot = fn.reshape(types.Constant(np.full((1, 1, 3), BORDER_GREY, np.uint8), device="cpu"), layout="HWC")
    grey = fn.slice(
        dot, start=(0, 0), shape=canvas_hw, axes=(0, 1), out_of_bounds_policy="pad", fill_values=BORDER_GREY
    )
    return fn.multi_paste(
        grey,
        *tiles,
        out_anchors=given("anchors", types.INT32, 2),
        shapes=given("areas", types.INT32, 2),
        output_size=canvas_hw,
    )


def layered(tiles: Sequence[Any]) -> Any:
    """Return the tiles at their places on a grey canvas, later ones on top; (h, w, 3) uint8.

    Each tile is cut to the canvas, which pads it. Of several the highest layer wins a pixel: the number of the tile
    stands above its 8-bit levels, and grey without a number below all of them.
    """
    canvas_hw = given("canvas", types.INT32, 1)
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
        start=given(f"canvas_start{slot}", types.INT32, 1),
        shape=canvas_hw,
        axes=(0, 1),
        out_of_bounds_policy="pad",
        fill_values=BORDER_GREY,
    )


def pasted(canvas: Any, backend: Backend) -> Any:
    """Return the canvas with its mirror image where the mask is 1."""
    mask = backend.place(given("mask", types.UINT8, 3))
    if given("pastes", types.BOOL, 0):
        rest = fn.cast(mask == 0, dtype=types.UINT8)
        replaced = canvas * rest + fn.flip(canvas, horizontal=1) * mask
    else:
        replaced = canvas
    return replaced


def warped(canvas: Any) -> Any:
    """Return the output that a warp matrix makes of a canvas."""
    return fn.experimental.warp_perspective(
        canvas,
        matrix=given("warp", types.FLOAT, 2),
        size=given("output", types.FLOAT, 1),
        fill_value=float(BORDER_GREY),
    )


def finished(canvas: Any, backend: Backend) -> Any:
    """Return (3, h, w) uint8: blended with its partner and coloured."""
    ratio = backend.place(given("mix_ratio", types.FLOAT64, 0))
    gains = [backend.place(given(name, types.FLOAT, 0)) for name in GAINS]
    partner = fn.permute_batch(canvas, indices=given("partner", types.INT32, 0))
    if given("blended", types.BOOL, 0):  # noqa: SIM108 - DALI rewrites statements, not expressions
        picture = finishing.blend(canvas, partner, ratio)
    else:
        picture = canvas
    if given("coloured", types.BOOL, 0):
        picture = finishing.apply_gains(picture, *gains)
    # Last, and for all: the merge of a split leaves pictures in several blocks of memory, this joins them in one.
    return finishing.planes(picture)


def joined_quarters(pictures: Any) -> Any:
    """Return (3, 2h, 2w): four windows, each h x w, of pictures of the batch, one in each quarter."""
    quarters, shape = [], given("quarter_hw", types.INT32, 1)
    for quarter in range(QUARTERS):
        picture = fn.permute_batch(pictures, indices=given(f"quarter{quarter}", types.INT32, 0))
        window = given(f"quarter_start{quarter}", types.INT32, 1)
        quarters.append(fn.slice(picture, start=window, shape=shape, axes=(1, 2)))
    rows = [fn.cat(*quarters[:2], axis=2), fn.cat(*quarters[2:], axis=2)]
    return fn.cat(*rows, axis=1)


def gains_of(rows: Sequence[tuple[float, float, float] | None]) -> dict[str, np.ndarray]:
    """Return the values to feed under the names of `GAINS`: (n,) float32 each; 1 where colours are left alone."""
    gains = np.array([row or (1.0, 1.0, 1.0) for row in rows], np.float32)
    return {name: np.ascontiguousarray(gains[:, channel]) for channel, name in enumerate(GAINS)}

"""Tile composition against NumPy, for any position, number and order."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.augmentation.letterbox import BORDER_GREY
from pipelines.augmentation.plans import BatchPlan, Picture
from pipelines.augmentation.rendering import TileRender, ViewRender
from pipelines.pixels.backend import Backend
from pipelines.pixels.canvas_graph import CanvasPipeline, GraphSettings

VIEWS = 3
MAX_PX = 24


def unscaled(pixels: np.ndarray, anchor: tuple[int, int]) -> TileRender:
    """Return a tile that shows all pixels of a crop without scaling."""
    height, width = pixels.shape[:2]
    return TileRender(
        source=0,
        crop_start=(0, 0),
        crop_shape=(height, width),
        region_start=(0.0, 0.0),
        region_end=(float(height), float(width)),
        shape=(height, width),
        anchor=anchor,
    )


def reference(view: ViewRender, crops: Sequence[np.ndarray]) -> np.ndarray:
    """Render the view (3, h, w) with NumPy."""
    canvas = np.full((*view.canvas_hw, 3), BORDER_GREY, np.uint8)
    for tile, crop in zip(view.tiles, crops, strict=True):
        (top, left), (height, width) = tile.anchor, tile.shape
        canvas[top : top + height, left : left + width] = crop
    return canvas.transpose(2, 0, 1)


@pytest.fixture(scope="module", params=[1, 4, 9], ids="{} slots".format)
def canvases(request: pytest.FixtureRequest) -> CanvasPipeline:
    pipeline = CanvasPipeline(
        GraphSettings(
            slots=request.param,
            warp=False,
            paste=False,
            batch_size=VIEWS,
            threads=1,
            backend=Backend(),
            finish=True,
            decoded=True,
        )
    )
    request.addfinalizer(pipeline.close)
    return pipeline


def random_view(random: np.random.Generator, slots: int) -> tuple[ViewRender, list[np.ndarray]]:
    """Return a canvas with overlapping tiles, at most `slots`, often fewer or none."""
    height, width = (int(n) for n in random.integers(1, MAX_PX + 1, 2))
    canvas_hw = (height, width)
    tiles, crops = [], []
    for _ in range(random.integers(slots + 1)):
        top, left = (int(random.integers(side)) for side in canvas_hw)
        shape = [int(random.integers(1, side - at + 1)) for side, at in zip(canvas_hw, (top, left), strict=True)]
        crops.append(random.integers(0, 256, (*shape, 3), np.uint8))
        tiles.append(unscaled(crops[-1], (top, left)))
    return ViewRender(tuple(tiles), canvas_hw, None, canvas_hw), crops


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_layout_matches_numpy(canvases: CanvasPipeline, seed: int) -> None:
    random = np.random.default_rng(seed)
    views, crops = zip(*(random_view(random, canvases._settings.slots) for _ in range(VIEWS)), strict=True)
    pictures = tuple(Picture((view,), 1.0, None, row) for row, view in enumerate(views))
    canvases.submit(BatchPlan(pictures, (1, 1), np.zeros((0, 6), np.float32), np.arange(VIEWS)), crops)
    rendered = canvases.collect()
    try:
        for number, (view, own) in enumerate(zip(views, crops, strict=True)):
            assert np.array_equal(rendered.at(number), reference(view, own))
    finally:
        canvases.release()


def test_empty_slot_does_not_change_canvas(canvases: CanvasPipeline) -> None:
    """An earlier graph for GPUs filled the canvas with the pixel of an empty slot."""
    grey = ViewRender((), (5, 7), None, (5, 7))
    canvases.submit(BatchPlan((Picture((grey,), 1.0, None, 0),), (5, 7), np.zeros((0, 6)), np.arange(1)), [()])
    rendered = canvases.collect()
    assert np.array_equal(rendered.at(0), np.full((3, 5, 7), BORDER_GREY, np.uint8))
    canvases.release()

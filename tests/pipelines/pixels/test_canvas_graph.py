from pathlib import Path

import numpy as np
import pytest

from kernels.plugin import load_plugin
from pipelines.augmentation.augment_config import AugmentConfig
from pipelines.pixels import colour
from pipelines.pixels.canvas_graph import CanvasPipeline, GraphSettings
from pipelines.pixels.encoded_images import ImageBytes
from pipelines.train import TrainPipeline
from tests.pipelines.rendered import rendered_index


def test_gains_by_hand() -> None:
    # Half the saturation of pure red, at half the value: 127 of 255 levels, 127 parts of 255 of it taken away from
    # green and blue.
    red = np.array([[[255, 0, 0]]], np.uint8)
    assert colour.apply_hsv_gains(red, np.array((1.0, 0.5, 0.5))).tolist() == [[[127, 64, 64]]]
    # Hue 60 (green, in steps of two degrees) times 1.5 is 90: cyan.
    green = np.array([[[0, 255, 0]]], np.uint8)
    assert colour.apply_hsv_gains(green, np.array((1.5, 1.0, 1.0))).tolist() == [[[0, 255, 255]]]


@pytest.mark.parametrize("augment", [AugmentConfig(mixup=0.5), AugmentConfig(degrees=10)], ids=["mixup", "warp"])
def test_finishing_in_the_graph_equals_finishing_on_the_host(tmp_path: Path, augment: AugmentConfig) -> None:
    """The graph that a GPU runs, run on the CPU."""
    index = rendered_index(tmp_path, images=12)
    pipeline = TrainPipeline(index, augment, batch_size=6, image_px=128, seed=0, workers=2)
    expected = list(pipeline.epoch(0))
    plans = list(pipeline.plans(0))
    pipeline.close()
    settings = GraphSettings(
        slots=augment.tiles,
        warp=not augment.axis_aligned,
        paste=False,
        batch_size=12,
        threads=2,
        device="cpu",
        finish=True,
    )
    canvases, encoded = CanvasPipeline(settings), ImageBytes(index)
    for plan, batch in zip(plans, expected, strict=True):
        views = plan.views
        canvases.submit(views, [[encoded.tile(t) for t in view.tiles] for view in views], plan.finishes)
        drawn = canvases.collect()
        images = np.stack([drawn.at(n) for n in range(len(plan.pictures))])
        canvases.release()
        difference = np.abs(images.astype(int) - batch.images)
        # Float hues may round to the neighbouring level of two degrees; everything else agrees to one grey level.
        assert (difference > 1).mean() < 0.01
        assert difference.max() <= 20
    canvases.close()


def test_blend_rounds_down() -> None:
    first, second = np.full((1, 1, 3), 100, np.uint8), np.full((1, 1, 3), 201, np.uint8)
    assert colour.mix_images(first, second, 0.5).tolist() == [[[150, 150, 150]]]
    target = np.empty((3, 1, 1), np.uint8)
    colour.finish_picture([first, second], 0.5, None, target)
    assert target.ravel().tolist() == [150, 150, 150]


def test_plugin_draws_what_dali_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_plugin("require")
    index = rendered_index(tmp_path, images=8)
    still = AugmentConfig(hsv_h=0, hsv_s=0, hsv_v=0, mixup=0.5, flipud=0.5, mosaic=0.8, mosaic9=0.3)
    images = []
    for loaded in (True, False):
        monkeypatch.setattr("kernels.plugin.is_loaded", lambda loaded=loaded: loaded)
        pipeline = TrainPipeline(index, still, batch_size=4, image_px=128, seed=0, workers=2)
        images.append(np.concatenate([batch.images for batch in pipeline.epoch(0)]))
        pipeline.close()
    difference = np.abs(images[0].astype(int) - images[1])
    # Weights of 11 bits against floats, at edges of 190 levels; a place wrong by 1/20 px would show.
    assert difference.mean() < 0.02
    assert difference.max() <= 8


def test_host_and_plugin_colour_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_plugin("require")
    index = rendered_index(tmp_path, images=8)
    warped = AugmentConfig(degrees=5, mixup=0.5)  # drawn by DALI either way
    batches = []
    for loaded in (True, False):
        monkeypatch.setattr("kernels.plugin.is_loaded", lambda loaded=loaded: loaded)
        pipeline = TrainPipeline(index, warped, batch_size=4, image_px=128, seed=0, workers=2)
        batches.append(list(pipeline.epoch(0)))
        pipeline.close()
    for one, other in zip(*batches, strict=True):
        assert np.array_equal(one.images, other.images)

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from kernels.plugin import load_plugin
from pipelines.augmentation.letterbox import rectangular_batches, unletterbox_boxes
from pipelines.augmentation.mosaic import place
from pipelines.augmentation.plans import BatchPlan, Picture
from pipelines.augmentation.rendering import placed_image
from pipelines.data.index import ImageIndex, index_images
from pipelines.pixels.backend import Backend
from pipelines.pixels.canvas_graph import CanvasPipeline, GraphSettings
from pipelines.settings import BatchSettings
from pipelines.shard import Shard
from pipelines.val import ValPipeline
from tests.pipelines.pixels.test_canvas_graph import as_numpy, of_kind
from tests.pipelines.rendered import label_hits, rendered_index, unlabelled_patches

Make = Callable[..., ValPipeline]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    return rendered_index(tmp_path_factory.mktemp("rendered"), images=11, sides=(120, 500))


@pytest.fixture
def make(index: ImageIndex) -> Iterator[Make]:
    made: list[ValPipeline] = []

    def build(*, rect: bool = True, **changes: object) -> ValPipeline:
        settings = replace(BatchSettings(batch_size=4, image_px=320, workers=2), **changes)  # type: ignore[arg-type]
        made.append(ValPipeline(index, settings, rect=rect))
        return made[-1]

    yield build
    for pipeline in made:
        pipeline.close()


@pytest.mark.parametrize("rect", [True, False])
def test_boxes_match_pixels_and_none_is_lost(make: Make, index: ImageIndex, rect: bool) -> None:
    batches = list(make(rect=rect))
    hits = np.concatenate([label_hits(b.images, b.labels, min_side=1) for b in batches])
    assert len(hits) == sum(len(rows) for rows in index.labels)
    assert hits.mean() > 0.96
    assert sum(unlabelled_patches(b.images, b.labels) for b in batches) == 0


def test_every_image_once_ordered_by_shape(make: Make, index: ImageIndex) -> None:
    pipeline = make()
    batches = list(pipeline)
    order = np.concatenate([b.indices for b in batches])
    assert sorted(order) == list(range(len(index)))
    aspect = index.sizes[:, 1] / index.sizes[:, 0]
    assert np.all(np.diff(aspect[order]) >= 0)
    assert [b.images.shape[2:] for b in batches] == pipeline.shapes_hw
    assert [len(b.images) for b in batches] == [4, 4, 3]
    for batch in batches:
        assert [index.paths[n] for n in batch.indices] == list(batch.paths)


def test_batch_shapes_known_values() -> None:
    # Two images of 100 x 50 at 320 px, stride 32, half a stride of border: height 160 / 32 + 0.5 = 5.5 -> 6 strides,
    # width 320 / 32 + 0.5 = 10.5 -> 11 strides.
    sizes = np.array([(100, 50), (100, 50), (50, 100)])
    order, shapes = rectangular_batches(sizes, batch_size=2, image_px=320, stride=32, pad_strides=0.5)
    assert order.tolist() == [0, 1, 2]
    assert shapes.tolist() == [[192, 352], [352, 192]]


def test_geometry_maps_back_to_file(make: Make, index: ImageIndex) -> None:
    for batch in make():
        height, width = batch.images.shape[2:]
        for row, number in enumerate(batch.indices):
            labels = batch.labels[batch.labels[:, 0] == row, 2:].astype(np.float64)
            corners = np.concatenate((labels[:, :2] - labels[:, 2:] / 2, labels[:, :2] + labels[:, 2:] / 2), axis=1)
            info = batch.geometry[row]
            assert info.original_hw == tuple(index.sizes[number][::-1])
            back = unletterbox_boxes(
                corners * (width, height, width, height),
                from_hw=(height, width),
                to_hw=info.original_hw,
                ratio_pad=(info.ratio_hw[0], info.pad_wh),
            )
            boxes = index.labels[number][:, 1:].astype(np.float64)
            true = np.concatenate((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), axis=1)
            # The shorter side is rounded up to integer pixels; the unrounded border does not matter.
            scaled_hw = np.ceil(np.array(info.original_hw) * 320 / max(info.original_hw))
            expected = true * np.tile(scaled_hw[::-1], 2) / info.ratio_hw[0]
            assert np.abs(back - expected).max() <= 0.05


def test_second_pass_is_identical(make: Make) -> None:
    pipeline = make()
    for one, other in zip(list(pipeline), list(pipeline), strict=True):
        assert np.array_equal(one.images, other.images)
        assert np.array_equal(one.labels, other.labels)


def test_ranks_partition_batches(make: Make) -> None:
    whole, parts = list(make()), [make(shard=Shard(rank, 2)) for rank in range(2)]
    assert [part.batches_per_epoch for part in parts] == [len(whole)] * 2
    assert [parts[0].images_of(number) for number in range(len(whole))] == [len(batch.images) for batch in whole]
    for one, *shares in zip(whole, *parts, strict=True):
        counted = shares if len(one.images) > 1 else shares[:1]
        assert np.array_equal(one.images, np.concatenate([share.images for share in counted]))
        assert one.paths == tuple(path for share in counted for path in share.paths)


def test_border_is_grey(make: Make) -> None:
    for batch in make(rect=False):
        assert batch.images.shape[2:] == (320, 320)
        for image, info in zip(batch.images, batch.geometry, strict=True):
            left, top = (int(p) for p in info.pad_wh)
            assert np.all(image[:, :top] == 114)
            assert np.all(image[:, :, :left] == 114)
            assert not np.any(image[:, 160, 160] == 114)


def test_real_photos(bccd: Path, tmp_path: Path) -> None:
    index = index_images([bccd.parent / "images" / "val"], ("RBC", "WBC", "Platelets"), cache_dir=tmp_path)
    pipeline = ValPipeline(index, BatchSettings(batch_size=32, image_px=320, workers=2))
    batches = list(pipeline)
    pipeline.close()
    assert sum(len(b.labels) for b in batches) == index.num_boxes
    assert {b.images.shape[2:] for b in batches} == {(256, 352)}


def test_invalid_settings_raise(make: Make) -> None:
    with pytest.raises(ValueError, match="image size 300: must be a multiple of the stride 32"):
        make(image_px=300)


def test_downscaling_matches_opencv_area(make: Make, index: ImageIndex) -> None:
    """The reference validates on cv2.resize(INTER_AREA); decoders and rounding differ by a level or two."""
    load_plugin("require")
    compared = 0
    for batch in make(image_px=96):
        for image, info, number in zip(batch.images, batch.geometry, batch.indices, strict=True):
            height, width = (max(1, math.ceil(side * 96 / max(info.original_hw))) for side in info.original_hw)
            photo = cv2.imread(str(index.paths[number]))[..., ::-1]
            expected = cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA).transpose(2, 0, 1)
            left, top = (round(pad - 0.1) for pad in info.pad_wh)
            got = image[:, top : top + height, left : left + width]
            difference = np.abs(got.astype(int) - expected)
            assert difference.max() <= 3
            sampled = cv2.resize(photo, (width, height), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1)
            compared += int(np.abs(got.astype(int) - sampled).max() > 20)
    assert compared > 5


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_gpu_renders_same_images(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare as for training (`test_canvas_graph.py`), on the CPU without our filter, which DALI lacks."""
    mean, most = {"png": (0.1, 8), "jpg": (0.5, 16)}[kind]
    index = of_kind(rendered_index(tmp_path, images=14), kind)
    settings = BatchSettings(batch_size=4, image_px=128, workers=2)
    on_gpu = ValPipeline(index, replace(settings, device="cuda:0"))
    monkeypatch.setattr("kernels.plugin.is_loaded", lambda: False)
    on_cpu = ValPipeline(index, settings)
    for one, other in zip(on_gpu, on_cpu, strict=True):
        difference = np.abs(as_numpy(one.images).astype(int) - as_numpy(other.images))
        assert difference.mean() <= mean
        assert np.quantile(difference, 0.999) <= most
    on_gpu.close()
    on_cpu.close()


def test_half_size_is_exact_in_dali(tmp_path: Path) -> None:
    """On a GPU and without the plugin DALI has no area filter, but linear sampling is the same at this scale."""
    photo = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    view = placed_image(0, place((64, 48), (0, 0), (64, 48)), (128, 96), (64, 48), by_area=True)
    settings = GraphSettings(
        slots=1, warp=False, paste=False, batch_size=1, threads=1, backend=Backend(), finish=False, decoded=True
    )
    pipeline = CanvasPipeline(settings)
    pictures = (Picture((view,), 1.0, None, 0),)
    pipeline.submit(BatchPlan(pictures, (48, 64), np.zeros((0, 6), np.float32), np.arange(1)), [[photo]])
    got = pipeline.collect().at(0).copy()
    pipeline.release()
    pipeline.close()
    expected = cv2.resize(photo, (64, 48), interpolation=cv2.INTER_AREA)
    assert np.abs(got.astype(int) - expected).max() <= 1

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvidia.dali import backend

from kernels.plugin import load_plugin
from pipelines.augmentation.augment_config import AugmentConfig
from pipelines.data.columns import ImagePaths
from pipelines.data.index import ImageIndex
from pipelines.pixels import colour
from pipelines.pixels.backend import Backend
from pipelines.pixels.canvas_graph import GraphSettings, define
from pipelines.pixels.image_cache import CacheKind
from pipelines.settings import BatchSettings
from pipelines.shard import Shard
from pipelines.train import TrainPipeline
from tests.pipelines.pixels.device_graph import use_gpu_graph
from tests.pipelines.rendered import rendered_index

DALI: Any = backend  # its type stubs lack the operator lists


def test_gains_known_values() -> None:
    # Pure red at half the saturation and half the value: value 127 of 255; green and blue are lower by 127/255 of it.
    red = np.array([[[255, 0, 0]]], np.uint8)
    assert colour.apply_tables(red, colour.hsv_tables(np.array((1.0, 0.5, 0.5)))).tolist() == [[[127, 64, 64]]]
    # Hue 60 (green, in steps of two degrees) times 1.5 is 90: cyan.
    green = np.array([[[0, 255, 0]]], np.uint8)
    assert colour.apply_tables(green, colour.hsv_tables(np.array((1.5, 1.0, 1.0)))).tolist() == [[[0, 255, 255]]]


KINDS = {
    "mosaic": AugmentConfig(),
    "mosaic and letterbox": AugmentConfig(mosaic=0.5, flipud=0.5),
    "rect": AugmentConfig(rect=True),
    "nine images, mixup": AugmentConfig(mosaic9=0.5, mixup=0.5),
    "vanishing tiles": AugmentConfig(scale=0.95, translate=0.9),
    "quad, mixup": AugmentConfig(quad=True, mixup=0.5),
    "warp": AugmentConfig(degrees=10, shear=3),
    "perspective, mixup": AugmentConfig(perspective=0.0005, mixup=0.5),
    "pasted": AugmentConfig(copy_paste=0.8, mosaic9=0.5),
    "quad, warp, pasted": AugmentConfig(quad=True, degrees=5, copy_paste=0.5),
}
"""Augmentation settings that cover all kinds of views."""


@pytest.fixture(scope="module")
def outlined(tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    return rendered_index(tmp_path_factory.mktemp("outlined"), images=14, polygons=True)


def rendered(index: ImageIndex, augment: AugmentConfig, device: str = "cpu", **changes: Any) -> list[np.ndarray]:
    """Render two epochs; the last batch of each is smaller."""
    sizes = changes.pop("sizes", None)
    settings = BatchSettings(batch_size=8, image_px=128, workers=2, device=device, **changes)
    pipeline = TrainPipeline(index, augment, settings, seed=0)
    images = [np.array(as_numpy(b.images)) for epoch in range(2) for b in pipeline.epoch(epoch, sizes=sizes)]
    pipeline.close()
    return images


def as_numpy(images: Any) -> np.ndarray:
    return images if isinstance(images, np.ndarray) else images.numpy()


@pytest.mark.parametrize("augment", KINDS.values(), ids=KINDS)
def test_gpu_graph_renders_same_images(
    outlined: ImageIndex, augment: AugmentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are bitwise equal if both resample with DALI; the host composes, blends and colours with NumPy."""
    monkeypatch.setattr("kernels.plugin.is_loaded", lambda: False)
    expected = rendered(outlined, augment)
    use_gpu_graph(monkeypatch)
    for one, other in zip(rendered(outlined, augment), expected, strict=True):
        assert one.shape == other.shape
        difference = np.abs(one.astype(int) - other)
        # Gains in float32 can round a level of hue differently; here they do not.
        assert difference.max() == 0


@pytest.mark.parametrize("changes", [{"cache": "ram"}, {"sizes": [64, 160]}, {"shard": Shard(1, 2)}], ids=str)
def test_gpu_graph_accepts_same_settings_as_host(
    outlined: ImageIndex, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    quad = AugmentConfig(quad=True, degrees=5)
    for augment in (AugmentConfig(degrees=5), quad):
        with monkeypatch.context() as patches:
            expected = rendered(outlined, augment, **changes)
            use_gpu_graph(patches)
            for one, other in zip(rendered(outlined, augment, **changes), expected, strict=True):
                assert np.array_equal(one, other)


def test_gpu_graph_matches_plugin(outlined: ImageIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    load_plugin("require")
    expected = rendered(outlined, AugmentConfig(mixup=0.5))
    use_gpu_graph(monkeypatch)
    for one, other in zip(rendered(outlined, AugmentConfig(mixup=0.5)), expected, strict=True):
        difference = np.abs(one.astype(int) - other)
        assert difference.mean() < 0.02  # as in `test_plugin_matches_dali`
        assert difference.max() <= 8


def settings_of(index: ImageIndex, augment: AugmentConfig, cache: CacheKind | None) -> GraphSettings:
    """Return the settings of a GPU's graph."""
    settings = BatchSettings(batch_size=8, image_px=128, workers=2, cache=cache)
    pipeline = TrainPipeline(index, augment, settings, seed=0)
    pipeline.close()
    return replace(pipeline.graph_settings, finish=True)


def operators(settings: GraphSettings) -> list[Any]:
    """Return the operators of a graph; without building it, no GPU is needed."""
    pipeline = define(settings)
    pipeline._build_graph()
    return pipeline._ops


@pytest.mark.parametrize("cache", [None, "ram"])
@pytest.mark.parametrize("augment", KINDS.values(), ids=KINDS)
def test_every_operator_exists_on_gpu(outlined: ImageIndex, augment: AugmentConfig, cache: CacheKind | None) -> None:
    settings = replace(settings_of(outlined, augment, cache), backend=Backend(1))
    assert define(settings).device_id == 1
    known = {"cpu": DALI.RegisteredCPUOps(), "gpu": DALI.RegisteredGPUOps(), "mixed": DALI.RegisteredMixedOps()}
    found = {_kind(op) for op in operators(settings)}
    assert not [(device, name) for device, name in found if name not in known[device]]
    # Only inputs, and their splits, are on the host; pixels are never copied back.
    assert {name for device, name in found if device == "cpu"} <= {"ExternalSource", "_conditional__Split"}
    assert "MultiPaste" not in {name for _, name in found}  # its GPU version differs from its CPU version


@pytest.mark.parametrize("cache", [None, "ram"])
@pytest.mark.parametrize("augment", KINDS.values(), ids=KINDS)
def test_gpu_graph_matches_tested_cpu_graph(
    outlined: ImageIndex, augment: AugmentConfig, cache: CacheKind | None
) -> None:
    settings = settings_of(outlined, augment, cache)
    on_gpu, on_cpu = (operators(replace(settings, backend=where)) for where in (Backend(0), Backend()))
    assert [_described(op) for op in on_gpu] == [_described(op) for op in on_cpu]


def _kind(operator: Any) -> tuple[str, str]:
    """Return DALI's backend and name of an operator."""
    name = re.match(r"OpSpec for (\w+):", str(operator.spec))
    device = re.search(r"(?m)^ *device: (\w+)$", str(operator.spec))
    assert name is not None
    assert device is not None
    return device[1], name[1]


def _described(operator: Any) -> list[str]:
    """Return inputs, outputs and arguments, except the device and those of the GPU decoder."""
    lines = re.sub(r"(?m)_(cpu|gpu)$", "", str(operator.spec)).splitlines()
    ignored = ("device:", "jpeg_fancy_upsampling:", "_origin_stack")
    return [line for line in lines if not line.strip().startswith(ignored)]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["png", "jpg"])
@pytest.mark.parametrize("augment", KINDS.values(), ids=KINDS)
def test_gpu_renders_same_images(outlined: ImageIndex, augment: AugmentConfig, kind: str) -> None:
    """The tolerance is that of "Pixels decoded and drawn by a GPU" in docs/compatibility.md."""
    mean, most = {"png": (0.1, 8), "jpg": (0.5, 16)}[kind]
    index = of_kind(outlined, kind)
    for one, other in zip(rendered(index, augment, "cuda:0"), rendered(index, augment), strict=True):
        difference = np.abs(one.astype(int) - other)
        assert difference.mean() <= mean
        assert np.quantile(difference, 0.999) <= most


def of_kind(index: ImageIndex, kind: str) -> ImageIndex:
    """Keep only the files of an index with a suffix."""
    keep = np.array([path.suffix == f".{kind}" for path in index.paths])
    return replace(
        index,
        paths=ImagePaths(path for path, kept in zip(index.paths.texts, keep, strict=True) if kept),
        sizes=index.sizes[keep],
        labels=index.labels.selected(keep),
        segments=index.segments.selected(keep),
        formats=index.formats.selected(keep),
    )


def test_blend_rounds_down() -> None:
    first, second = np.full((1, 1, 3), 100, np.uint8), np.full((1, 1, 3), 201, np.uint8)
    assert colour.mix_images(first, second, 0.5).tolist() == [[[150, 150, 150]]]
    target = np.empty((3, 1, 1), np.uint8)
    colour.finish_picture([first, second], 0.5, None, target)
    assert target.ravel().tolist() == [150, 150, 150]


def test_plugin_matches_dali(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_plugin("require")
    index = rendered_index(tmp_path, images=8)
    still = AugmentConfig(hsv_h=0, hsv_s=0, hsv_v=0, mixup=0.5, flipud=0.5, mosaic=0.8, mosaic9=0.3)
    images = []
    for loaded in (True, False):
        monkeypatch.setattr("kernels.plugin.is_loaded", lambda loaded=loaded: loaded)
        pipeline = TrainPipeline(index, still, BatchSettings(batch_size=4, image_px=128, workers=2), seed=0)
        images.append(np.concatenate([batch.images for batch in pipeline.epoch(0)]))
        pipeline.close()
    difference = np.abs(images[0].astype(int) - images[1])
    # Weights of 11 bits against floats, at edges of 190 levels; a place wrong by 1/20 px would show.
    assert difference.mean() < 0.02
    assert difference.max() <= 8


def test_host_and_plugin_colours_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_plugin("require")
    index = rendered_index(tmp_path, images=8)
    warped = AugmentConfig(degrees=5, mixup=0.5)  # drawn by DALI either way
    batches = []
    for loaded in (True, False):
        monkeypatch.setattr("kernels.plugin.is_loaded", lambda loaded=loaded: loaded)
        pipeline = TrainPipeline(index, warped, BatchSettings(batch_size=4, image_px=128, workers=2), seed=0)
        batches.append(list(pipeline.epoch(0)))
        pipeline.close()
    for one, other in zip(*batches, strict=True):
        assert np.array_equal(one.images, other.images)

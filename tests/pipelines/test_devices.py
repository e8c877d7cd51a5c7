"""Pipelines decode and render on their given device, so that each rank uses its own GPU."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nvidia.dali import Pipeline

from graph_train.ranks.launcher import RankInfo
from graph_train.training import assembly
from graph_train.training.setup import Setup
from pipelines.augmentation.augment_config import AugmentConfig
from pipelines.data.index import ImageIndex
from pipelines.pixels.backend import Backend
from pipelines.pixels.canvas_graph import CanvasPipeline
from pipelines.pixels.decoding import TileDecoder, dali_can_decode
from pipelines.predict import FrameBatches, ImageBatches, PredictSettings
from pipelines.settings import BatchSettings
from pipelines.shard import Shard
from pipelines.train import TrainPipeline
from pipelines.val import ValPipeline
from tests.pipelines.rendered import rendered_index


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    return rendered_index(tmp_path_factory.mktemp("rendered"), images=4)


@pytest.fixture
def built_devices(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """Record the GPU numbers of the DALI pipelines built; none is started, as that would need the GPU."""
    numbers: list[int | None] = []
    monkeypatch.setattr(Pipeline, "build", lambda self: numbers.append(self.device_id))
    monkeypatch.setattr(CanvasPipeline, "_start", lambda _: None)
    monkeypatch.setattr(Pipeline, "_shutdown", lambda _: None)
    return numbers


@pytest.mark.parametrize("number", [0, 1, 7])
def test_every_pipeline_uses_its_own_gpu(index: ImageIndex, built_devices: list[int | None], number: int) -> None:
    device = f"cuda:{number}"
    settings = BatchSettings(batch_size=4, image_px=64, workers=1, device=device)
    predict = PredictSettings((64, 64), stride=32, batch_size=2, workers=1, device=device)
    for pipeline in (
        TrainPipeline(index, AugmentConfig(), settings, seed=0),
        TrainPipeline(index, AugmentConfig(degrees=5, quad=True), replace(settings, cache="ram"), seed=0),
        ValPipeline(index, settings),
        ImageBatches(index, predict),
        FrameBatches(Path("video.mp4"), (64, 48), predict),
    ):
        pipeline.close()
    assert built_devices == [number] * 5


def test_cpu_pipeline_uses_no_gpu(index: ImageIndex, built_devices: list[int | None]) -> None:
    settings = BatchSettings(batch_size=4, image_px=64, workers=1)
    TrainPipeline(index, AugmentConfig(degrees=5), settings, seed=0).close()
    assert built_devices == [None]


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_rank_trains_and_validates_on_its_own_gpu(
    index: ImageIndex, built_devices: list[int | None], rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Setup, "augment", AugmentConfig())
    options = SimpleNamespace(data=SimpleNamespace(cache=None, workers=1), optim=SimpleNamespace(batch_size=4, seed=0))
    data = SimpleNamespace(train=index, val=index)
    job: dict[str, Any] = {"options": options, "hyp": None, "data": data}
    setup = Setup(**job, device=f"cuda:{rank}", image_px=64, rank=RankInfo(rank, world=4, local_rank=rank))
    assert setup.shard == Shard(rank, 4)
    for pipeline in assembly._pipelines(setup, stride=32):
        pipeline.close()
    assert built_devices == [rank, rank]


def test_images_are_retested_on_failing_gpu(built_devices: list[int | None], monkeypatch: pytest.MonkeyPatch) -> None:
    def build(self: Pipeline) -> None:
        built_devices.append(self.device_id)
        raise NotImplementedError

    monkeypatch.setattr(Pipeline, "build", build)
    with pytest.raises(NotImplementedError):
        dali_can_decode(np.zeros(1, np.uint8), (1, 1), Backend(2))
    with pytest.raises(NotImplementedError):
        TileDecoder(max_tiles=1, threads=1)
    assert built_devices == [2, None]


@pytest.mark.parametrize("device", ["cuda", "gpu"])
def test_device_without_ordinal_raises(index: ImageIndex, device: str) -> None:
    with pytest.raises(ValueError, match="must be 'cpu' or 'cuda:N'"):
        ValPipeline(index, BatchSettings(batch_size=1, image_px=64, workers=1, device=device))

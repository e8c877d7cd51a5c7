"""Conversion of DALI batches to OneFlow tensors: asynchronous copies and the lifetime of DALI's memory."""

import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels.runtime import flow
from pipelines.augmentation.augment_config import AugmentConfig
from pipelines.data.index import ImageIndex
from pipelines.pixels import device_copy
from pipelines.pixels.canvas_graph import CanvasPipeline
from pipelines.pixels.device_copy import DeviceCopy, RenderedImages
from pipelines.settings import BatchSettings
from pipelines.train import TrainPipeline
from tests.pipelines.pixels.device_graph import use_gpu_graph
from tests.pipelines.rendered import rendered_index

BATCHES = 4
SETTINGS = BatchSettings(batch_size=4, image_px=64, workers=2)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    return rendered_index(tmp_path_factory.mktemp("rendered"), images=BATCHES * 4)


@pytest.fixture
def pipeline(index: ImageIndex, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrainPipeline]:
    use_gpu_graph(monkeypatch)
    made = TrainPipeline(index, AugmentConfig(), SETTINGS, seed=0)
    yield made
    made.close()


class RecordingCopy(DeviceCopy):
    """A fake copy that records its calls and fails if memory is released too early."""

    calls: list[str]
    alive: list["weakref.ref[RenderedImages]"]

    def __init__(self, source: RenderedImages) -> None:
        assert threading.current_thread() is threading.main_thread(), "OneFlow is used by a thread of the pipeline"
        self.calls.append("copy")
        self.alive.append(weakref.ref(source))
        super().__init__(source)

    def wait(self) -> None:
        assert self.alive[-1]() is not None, "DALI has its memory back before the copy is complete"
        self.calls.append("wait")
        super().wait()


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> type[RecordingCopy]:
    monkeypatch.setattr(RecordingCopy, "calls", [], raising=False)
    monkeypatch.setattr(RecordingCopy, "alive", [], raising=False)
    monkeypatch.setattr(device_copy, "DeviceCopy", RecordingCopy)
    monkeypatch.setattr(flow.cuda, "synchronize", lambda *_: pytest.fail("the whole device was synchronised"))
    return RecordingCopy


def test_copy_is_waited_for_one_batch_later(pipeline: TrainPipeline, copies: type[RecordingCopy]) -> None:
    for number, batch in enumerate(pipeline.epoch(0)):
        assert copies.calls == ["copy", *["wait", "copy"] * number]
        assert isinstance(batch.images, flow.Tensor)
        # Memory of the batch before is free, that of this one is kept.
        assert [reference() is None for reference in copies.alive] == [True] * number + [False]
    assert copies.calls == ["copy", "wait"] * BATCHES
    assert copies.alive[-1]() is None


def test_break_waits_for_copy(pipeline: TrainPipeline, copies: type[RecordingCopy]) -> None:
    batches = pipeline.epoch(0)
    next(batches)
    assert copies.calls == ["copy"]
    batches.close()  # type: ignore[attr-defined]
    assert copies.calls == ["copy", "wait"]
    assert copies.alive[0]() is None


def test_batches_outlive_pipeline(pipeline: TrainPipeline) -> None:
    kept = [batch.images for batch in pipeline.epoch(0)]
    early = [images.numpy().copy() for images in kept]
    list(pipeline.epoch(1))  # DALI's memory is used again
    pipeline.close()
    for images, before in zip(kept, early, strict=True):
        assert images.dtype == flow.uint8
        assert images.is_contiguous()
        assert images.shape == (4, 3, 64, 64)
        assert np.array_equal(images.numpy(), before)


def test_referenced_memory_is_not_reused(pipeline: TrainPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """`DeviceDrawing` relies on this: DALI's outputs outlive their release while the queue continues."""
    collected: list[tuple[Any, np.ndarray]] = []
    original = CanvasPipeline.collect

    def collect(self: CanvasPipeline) -> Any:
        output = original(self)
        collected.append((output, np.array(output.as_tensor())))
        return output

    monkeypatch.setattr(CanvasPipeline, "collect", collect)
    for epoch in range(3):
        list(pipeline.epoch(epoch))
    assert len(collected) == 3 * BATCHES
    for output, before in collected:
        assert np.array_equal(np.array(output.as_tensor()), before)
    assert len({output.data_ptr() for output, _ in collected}) == len(collected)


def test_file_damaged_during_run_is_named_and_repairable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpu_graph(monkeypatch)
    own = rendered_index(tmp_path, images=8)
    pipeline = TrainPipeline(own, AugmentConfig(), SETTINGS, seed=0)
    whole = own.paths[3].read_bytes()
    own.paths[3].write_bytes(b"\xff\xd8 no image")
    with pytest.raises(OSError, match=own.paths[3].name):
        list(pipeline.epoch(0))
    own.paths[3].write_bytes(whole)
    assert len(list(pipeline.epoch(0))) == 2
    pipeline.close()

"""Micro-batches reduce memory and do not change results."""

from typing import Any

import numpy as np
import pytest

from graph_train.detection.inference import Inference
from graph_train.detection.micro_batches import MICRO_BATCH_PX, MicroBatched
from kernels.framework.eager_runs import EAGER_RUNS
from kernels.runtime import flow
from tests.graph_train.tiny import tiny_network


class Counter:
    """A network that predicts the mean of each image and records its input shapes."""

    def __init__(self, *, takes: int = 0) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self._takes, self._kept = takes, []  # type: int, list[np.ndarray]

    def __call__(self, images: Any) -> np.ndarray:
        self.shapes.append(tuple(images.shape))
        if self._takes and len(self._kept) < len(set(self.shapes)):
            self._kept.append(np.ones(self._takes, np.uint8))
        pixels = images if isinstance(images, np.ndarray) else images.numpy()
        return pixels.mean(axis=(1, 2, 3)).reshape(-1, 1, 1)


def numbered(count: int, height: int, width: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1) * np.ones((1, 3, height, width), np.uint8)


@pytest.mark.parametrize("convert", [np.asarray, flow.from_numpy])
def test_micro_batches_have_one_shape_per_image_size(convert: Any) -> None:
    predict = Counter()
    micro_batched = MicroBatched(predict, on_cpu=True)
    for count, side in ((8, 320), (3, 320), (5, 320), (2, 640), (9, 64)):
        rows = micro_batched(convert(numbered(count, side, side)))
        assert rows[:, 0, 0].tolist() == list(range(count))
    assert [shape[0] * shape[2] * shape[3] <= MICRO_BATCH_PX for shape in predict.shapes] == [True] * len(
        predict.shapes
    )
    assert [shape[0] for shape in predict.shapes] == [4, 4, 4, 4, 4, 1, 1, 9]


def test_gpu_micro_batch_is_first_batch() -> None:
    predict = Counter()
    micro_batched = MicroBatched(predict, on_cpu=False)
    for count in (6, 2, 8):
        assert micro_batched(numbered(count, 640, 640))[:, 0, 0].tolist() == list(range(count))
    assert [shape[0] for shape in predict.shapes] == [6, 6, 6, 6]


def test_image_sizes_beyond_memory_are_rejected() -> None:
    micro_batched = MicroBatched(Counter(takes=200 << 20), on_cpu=True)
    micro_batched(numbered(1, 320, 320))
    with pytest.raises(ValueError, match=r"images of 99968 x 32000 px need .* GB, but only .* use a smaller --imgsz"):
        micro_batched(np.broadcast_to(np.uint8(0), (1, 3, 32000, 99968)))


def test_micro_batched_network_matches_bitwise() -> None:
    network = tiny_network(seed=2)
    images = np.random.default_rng(0).integers(0, 256, (7, 3, 320, 320), np.uint8)
    no_labels = np.zeros((0, 6), np.float32)
    whole = Inference(network, graph=False)(images, no_labels)[0]
    compiled = Inference(network, graph=True)
    micro_batched = MicroBatched(lambda part: compiled(part, no_labels)[0], on_cpu=True)
    assert np.array_equal(micro_batched(images), whole)
    assert compiled.graphs == 1


def test_frequent_shape_is_compiled_and_matches_bitwise() -> None:
    network, no_labels = tiny_network(seed=2), np.zeros((0, 6), np.float32)
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 96), np.uint8)
    inference = Inference(network)
    outputs = []
    for run in range(EAGER_RUNS + 2):
        assert inference.graphs == (run > EAGER_RUNS)
        outputs.append(np.array(inference(images, no_labels)[0]))
    assert inference.graphs == 1
    assert all(np.array_equal(output, outputs[0]) for output in outputs)
    at_once = Inference(network)
    at_once.compile_at_once()
    assert np.array_equal(np.array(at_once(images, no_labels)[0]), outputs[0])
    assert at_once.graphs == 1

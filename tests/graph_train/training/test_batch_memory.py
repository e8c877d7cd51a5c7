"""Memory measured by `--batch-size -1` on a fake GPU."""

from types import SimpleNamespace
from typing import Any

import pytest

from graph_train.host import memory as host_memory
from graph_train.host.memory import DeviceMemory
from graph_train.training.batch_memory import PhaseMemory, _facts, _Memory, measure_steps
from models.spec import load_model_spec
from pipelines.augmentation.random_samples import multi_scale_sizes
from tests.graph_train.tiny import TINY

GB = 10**9
TOTAL = 80 * GB


class FakeGpu:
    """A fake GPU with 5 GB in use, on which each compiled graph needs 0.5 GB and 0.25 GB per image."""

    def __init__(self, *, keeps: bool) -> None:
        self._keeps, self.used = keeps, 5 * GB

    def memory(self, number: int) -> DeviceMemory:
        assert number == 1
        return DeviceMemory(TOTAL - self.used, TOTAL)

    def step(self, images: int) -> None:
        taken = GB // 2 + images * GB // 4
        self.used = self.used + taken if self._keeps else max(self.used, 5 * GB + taken)


@pytest.mark.parametrize("compiled", [True, False])
def test_gpu_measurements_do_not_accumulate(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, found = FakeGpu(keeps=compiled), list[PhaseMemory]()
    monkeypatch.setattr(host_memory, "device_memory", gpu.memory)
    measure_steps(_Memory("cuda:1", compiled=compiled), [1, 2, 4, 8], gpu.step, found.append)
    expected = [GB // 2 + images * GB // 4 for images in (1, 2, 4, 8)]
    assert [item.used for item in found] == expected
    assert [item.images for item in found] == [1, 2, 4, 8]


def test_batch_size_that_may_not_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, found = FakeGpu(keeps=True), list[PhaseMemory]()
    monkeypatch.setattr(host_memory, "device_memory", gpu.memory)
    measure_steps(_Memory("cuda:1", compiled=True), [16, 64, 256, 1024], gpu.step, found.append)
    assert [item.images for item in found] == [16, 64]


def test_multi_scale_sizes_match_training() -> None:
    spec = load_model_spec(TINY)  # its coarsest stride is 16; sizes are multiples of 32
    run: Any = SimpleNamespace(
        setup=SimpleNamespace(
            image_px=128,
            options=SimpleNamespace(data=SimpleNamespace(multi_scale=True)),
            data=SimpleNamespace(train=[0], val=[0]),
        ),
        state=SimpleNamespace(network=SimpleNamespace(spec=spec, stride=spec.strides)),
        val_pipeline=SimpleNamespace(shapes_hw=[(96, 96)]),
    )
    sizes = sorted(set(multi_scale_sizes(0, 0, 1000, image_px=128, stride=spec.grid_px)))
    assert _facts(run, graphs_have_own_memory=True).sizes == sum((size / sizes[-1]) ** 2 for size in sizes)

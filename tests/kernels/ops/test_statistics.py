"""The moving average of many small tensors: against NumPy, with infinities, eager and inside a graph."""

from collections.abc import Callable

import numpy as np
import pytest

from kernels.ops.statistics.function import average_statistics, average_statistics_reference
from kernels.plugin import load_plugin
from kernels.runtime import Tensor, flow
from models.layers import plain
from tests.kernels.ops.launches import launches_of

_SIZES = (1, 3, 32, 255, 5000, 7)


@pytest.fixture(scope="module", autouse=True)
def _plugin() -> None:
    assert load_plugin("require").loaded


class _Average(flow.nn.Module):
    def __init__(self, start: np.ndarray, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("average", flow.tensor(start))

    def forward(self, share: Tensor, *current: Tensor) -> Tensor:
        return self.function(current, plain(self.average), share, 1)


class _AverageGraph(flow.nn.Graph):
    def __init__(self, module: _Average) -> None:
        super().__init__()
        self.module = module

    def build(self, share: Tensor, *current: Tensor) -> Tensor:
        return self.module(share, *current)


@pytest.mark.parametrize("function", [average_statistics, average_statistics_reference])
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_the_average_moves_by_the_share(graph: bool, function: Callable[..., Tensor]) -> None:
    generator = np.random.default_rng(0)
    expected = generator.standard_normal(sum(_SIZES)).astype(np.float32)
    module = _Average(expected, function)
    run = _AverageGraph(module) if graph else module
    for share in (0.25, 0.0, 1e-4, 1.0):
        current = [generator.standard_normal(size).astype(np.float32) for size in _SIZES]
        row = np.concatenate(current)
        given = flow.tensor(np.array([7.0, share], np.float32))
        tensors = [flow.tensor(values) for values in current]
        np.testing.assert_array_equal(run(given, *tensors).numpy(), row)
        # Each difference, product and sum rounded by itself.
        expected = expected - (expected - row) * np.float32(share)
        np.testing.assert_array_equal(module.average.numpy(), expected)


def test_one_launch_on_cuda(request: pytest.FixtureRequest) -> None:
    average, share = flow.zeros(sum(_SIZES)), flow.ones(1)
    current = [flow.ones(size) for size in _SIZES]
    emulated = request.config.getoption("--kernels") == "emulated-cuda"
    launches = launches_of(lambda: average_statistics(current, average, share, 0))
    assert launches == ({"average_statistics": 1} if emulated else {})


@pytest.mark.parametrize("function", [average_statistics, average_statistics_reference])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_without_a_share_what_is_not_finite_leaves_no_trace(bad: float, function: Callable[..., Tensor]) -> None:
    module = _Average(np.array([1.0, 2.0], np.float32), function)
    current = flow.tensor(np.array([bad, 3.0], np.float32))
    row = module(flow.tensor(np.array([1.0, 0.0], np.float32)), current)
    np.testing.assert_array_equal(row.numpy(), [bad, 3.0])
    np.testing.assert_array_equal(module.average.numpy(), [1.0, 2.0])
    module(flow.tensor(np.array([0.0, 0.5], np.float32)), current)
    assert not np.isfinite(module.average.numpy()[0])
    assert module.average.numpy()[1] == 2.5


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RuntimeError, match="check_failed_error"):
        average_statistics([flow.ones(3)], flow.ones(4), flow.ones(1), 0)
    with pytest.raises(RuntimeError, match="check_failed_error"):
        average_statistics([flow.ones(3)], flow.ones(3), flow.ones(1), 1)

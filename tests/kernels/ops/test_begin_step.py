"""`begin_step`: scalars selected by the outcome of the previous step, and the average of many small tensors."""

from collections.abc import Callable

import numpy as np
import pytest

from kernels.framework.module_graph import ModuleGraph
from kernels.ops.begin_step.function import begin_step, begin_step_reference
from kernels.runtime import Tensor, flow
from models.layers import tensor_of
from tests.kernels.ops.launches import launches_of

_SIZES = (1, 3, 32, 255, 5000, 7)
_FUNCTIONS = pytest.mark.parametrize("function", [begin_step, begin_step_reference])


class _Begin(flow.nn.Module):
    def __init__(self, start: np.ndarray, function: Callable[..., tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("average", flow.tensor(start))

    def forward(self, rows: Tensor, previous: Tensor, *current: Tensor) -> tuple[Tensor, Tensor]:
        return self.function(current, tensor_of(self.average), rows, previous, size=2)


def _previous(updated: float) -> Tensor:
    return flow.tensor(np.array([np.nan, updated], np.float32))


@_FUNCTIONS
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_row_is_selected_and_average_updated(graph: bool, function: Callable[..., tuple[Tensor, Tensor]]) -> None:
    generator = np.random.default_rng(0)
    expected = generator.standard_normal(sum(_SIZES)).astype(np.float32)
    module = _Begin(expected, function)
    run = ModuleGraph(module) if graph else module
    for number, share in enumerate((0.25, 0.0, 1e-4, 1.0)):
        current = [generator.standard_normal(size).astype(np.float32) for size in _SIZES]
        rows = generator.standard_normal((2, 4)).astype(np.float32)
        chosen = number % 2
        rows[chosen, -1], rows[1 - chosen, -1] = share, np.nan
        first, second = run(flow.tensor(rows), _previous(1.0 - chosen), *map(flow.tensor, current))
        np.testing.assert_array_equal(first.numpy(), rows[chosen, :2])
        np.testing.assert_array_equal(second.numpy(), rows[chosen, 2:])
        # Every difference, product and sum is rounded.
        expected = expected - (expected - np.concatenate(current)) * np.float32(share)
        np.testing.assert_array_equal(module.average.numpy(), expected)


def test_single_launch_on_cuda(request: pytest.FixtureRequest) -> None:
    average, rows = flow.zeros(sum(_SIZES)), flow.ones(2, 3)
    current = [flow.ones(size) for size in _SIZES]
    emulated = request.config.getoption("--kernels") == "emulated-cuda"
    launches = launches_of(lambda: begin_step(current, average, rows, _previous(1.0), size=2))
    assert launches == ({"begin_step": 1} if emulated else {})


@_FUNCTIONS
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_zero_share_ignores_nonfinite_values(bad: float, function: Callable[..., tuple[Tensor, Tensor]]) -> None:
    module = _Begin(np.array([1.0, 2.0], np.float32), function)
    current = flow.tensor(np.array([bad, 3.0], np.float32))
    rows = flow.tensor(np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.5]], np.float32))
    module(rows, _previous(1.0), current)
    np.testing.assert_array_equal(module.average.numpy(), [1.0, 2.0])
    module(rows, _previous(0.0), current)
    assert not np.isfinite(module.average.numpy()[0])
    assert module.average.numpy()[1] == 2.5


def test_wrong_sizes_raise() -> None:
    with pytest.raises(RuntimeError, match="check_failed_error"):
        begin_step([flow.ones(3)], flow.ones(4), flow.ones(2, 3), _previous(1.0), size=2)
    for rows, size in ((flow.ones(3, 3), 2), (flow.ones(2, 3), 3), (flow.ones(2, 3), 0)):
        with pytest.raises(RuntimeError, match="check_failed_error"):
            begin_step([flow.ones(3)], flow.ones(3), rows, _previous(1.0), size=size)

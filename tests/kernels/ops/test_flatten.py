"""Flattening several tensors into one row, against NumPy, eager and in a graph."""

import numpy as np
import pytest

from kernels.ops.flatten.function import flatten_tensors
from kernels.runtime import Tensor, flow
from tests.kernels.ops.launches import launches_of

_SHAPES = [[(1,)], [(3, 5), (7,)], [(1, 2, 3, 4), (), (0,), (5000,), (4096,), (4097, 2)], [(2,)] * 300]


class _FlattenGraph(flow.nn.Graph):
    def build(self, *tensors: Tensor) -> Tensor:
        return flatten_tensors(tensors)


@pytest.mark.parametrize("shapes", _SHAPES, ids=len)
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_flatten_keeps_order(shapes: list[tuple[int, ...]], graph: bool, request: pytest.FixtureRequest) -> None:
    if graph and (0,) in shapes:
        shapes = [shape for shape in shapes if shape != (0,)]  # no input of a graph may be empty
    generator = np.random.default_rng(0)
    arrays = [np.asarray(generator.standard_normal(shape), np.float32) for shape in shapes]
    tensors = [flow.tensor(array) for array in arrays]
    row = _FlattenGraph()(*tensors) if graph else flatten_tensors(tensors)
    np.testing.assert_array_equal(row.numpy(), np.concatenate([array.ravel() for array in arrays]))
    if not graph:
        emulated = request.config.getoption("--kernels") == "emulated-cuda"
        assert launches_of(lambda: flatten_tensors(tensors)) == ({"flatten": 1} if emulated else {})


def test_unaligned_views() -> None:
    base = flow.tensor(np.arange(5000, dtype=np.float32))
    row = flatten_tensors([base[1:4100], base[7:10]])
    np.testing.assert_array_equal(row.numpy(), [*range(1, 4100), 7, 8, 9])


def test_no_tensors_raises() -> None:
    with pytest.raises(ValueError, match="at least one"):
        flatten_tensors([])

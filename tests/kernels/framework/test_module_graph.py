import gc

import numpy as np
import pytest

from kernels.framework.module_graph import ModuleGraph, gradients_of
from kernels.runtime import Tensor, flow


class _Product(flow.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = flow.nn.Parameter(flow.tensor([2.0, -3.0]))
        self.y = flow.nn.Parameter(flow.tensor([5.0, 7.0]))

    def forward(self) -> list[Tensor]:
        return gradients_of((self.x * self.x * self.y).sum(), [self.x, self.y])


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_gradients_known_values(graph: bool) -> None:
    """The derivatives of x * x * y are 2 x y and x * x."""
    product = _Product()
    dx, dy = (ModuleGraph(product, differentiates=True) if graph else product)()
    np.testing.assert_array_equal(dx.numpy(), [20, -42])
    np.testing.assert_array_equal(dy.numpy(), [4, 9])


def test_unreachable_graphs_do_not_disturb_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """If garbage collection is not paused, compiling fails: the variable is not "created in nn.Graph"."""
    graph, x, internal = ModuleGraph(flow.nn.Linear(2, 2)), flow.ones(1, 2), flow._oneflow_internal
    complete, threshold = internal.CurJobBuildAndInferCtx_Complete, gc.get_threshold()

    def complete_with_garbage() -> None:
        other = ModuleGraph(flow.nn.Linear(2, 2))
        other.itself = other
        del other
        gc.set_threshold(1)
        assert [[] for _ in range(10)]  # any allocation starts a collection now
        complete()

    monkeypatch.setattr(internal, "CurJobBuildAndInferCtx_Complete", complete_with_garbage)
    try:
        np.testing.assert_array_equal(graph(x).numpy(), graph.module.to(flow.nn.Module)(x).numpy())
    finally:
        gc.set_threshold(*threshold)
    assert gc.isenabled()

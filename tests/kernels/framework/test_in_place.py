"""In-place changes written back by a graph, compared with eager execution."""

import numpy as np

from kernels.framework.in_place import assign, subtract
from kernels.framework.module_graph import ModuleGraph
from kernels.runtime import Tensor, flow


class _Store(flow.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = flow.nn.Parameter(flow.tensor([1.0, 2.0]))
        self.register_buffer("running", flow.tensor([8.0, 16.0]))
        self.register_buffer("copy", flow.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        """Change tensors in place after reading one of them."""
        before = self.running * 1.0
        assign(self.copy, before)
        subtract(self.running, x, rate=0.5)
        subtract(self.weight, x)
        return before


def test_in_place_changes_parameters_and_buffers() -> None:
    eager, captured = _Store(), _Store()
    graph = ModuleGraph(captured)
    for _ in range(2):
        x = flow.tensor([2.0, 4.0])
        np.testing.assert_array_equal(eager(x).numpy(), graph(x).numpy())
    for store in (eager, captured):
        # twice: running -= 0.5 * x and weight -= x; the copy is from before the second time
        assert store.running.numpy().tolist() == [6.0, 12.0]
        assert store.weight.numpy().tolist() == [-3.0, -6.0]
        assert store.copy.numpy().tolist() == [7.0, 14.0]
        assert store.weight.requires_grad

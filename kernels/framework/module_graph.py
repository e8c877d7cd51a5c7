"""A module as a graph, and gradients as tensors in eager mode and inside a graph."""

import contextlib
import gc
from collections.abc import Iterator, Sequence
from typing import Any

from kernels.plugin import is_loaded, plugin_library
from kernels.runtime import Tensor, flow


class ModuleGraph(flow.nn.Graph):
    """The forward pass of a module as a graph for inputs of fixed shapes, compiled by the first call.

    Args:
        module: the module; the graph uses its parameters and buffers.
        differentiates: whether the forward pass computes gradients by `gradients_of`.
    """

    def __init__(self, module: flow.nn.Module, *, differentiates: bool = False) -> None:
        super().__init__()
        self.module = module
        self.config._train(differentiates)

    def build(self, *inputs: Tensor) -> Any:
        """Return the module's outputs."""
        outputs = self.module(*inputs)
        # OneFlow's optimizers are not used, so the compiler can skip its passes for them.
        if self.config.training and is_loaded():
            self.config._train(False)
            plugin_library().graph_train_clear_train_conf()
        return outputs

    def build_graph(self, *inputs: Tensor) -> Any:
        """Build the job of the graph; see `oneflow.nn.Graph`."""
        with _garbage_collection_paused():
            return super().build_graph(*inputs)


@contextlib.contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """Keep unreachable graphs until a graph is built: destroying one clears the variables registered for any graph."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def gradients_of(loss: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of a loss with respect to the tensors, in their shapes; the backward pass runs once.

    Inside a graph, the loss is registered first, which makes it a training graph.

    Args:
        loss: a tensor with one element.
        tensors: tensors that it depends on, such as parameters.
    """
    internal = flow._oneflow_internal
    if loss.is_lazy:
        internal.nn.graph.AddTensorAsGraphLoss(loss)
    pack = internal.TensorTuple
    return list(internal.autograd.grad(pack([loss]), pack(list(tensors)), pack(), False, False))

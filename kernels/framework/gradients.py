"""Gradients as tensors, computed in eager mode or inside `nn.Graph.build`."""

from collections.abc import Sequence

from kernels.runtime import Tensor, flow


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

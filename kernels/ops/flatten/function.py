"""Flattening of several tensors into one, for a single all-reduce."""

from collections.abc import Sequence

from kernels import plugin
from kernels.framework import dispatch
from kernels.runtime import Tensor, flow


def flatten_tensors(tensors: Sequence[Tensor]) -> Tensor:
    """Return the elements of all tensors in order, (n,) float32; without gradients.

    Over ranks, `partial_sum` inputs give a `partial_sum` result and `broadcast` inputs a `broadcast` one.

    Args:
        tensors: at least one float32 tensor of any shape.
    Raises:
        ValueError: no tensor.
    """
    if not tensors:
        raise ValueError("no tensors given; at least one is required")
    with flow.no_grad():
        if not plugin.is_loaded():
            return flattened(tensors)
        return dispatch.call(dispatch.build_op("graph_train_flatten", (("tensor", len(tensors)),)), tensors)


def flattened(tensors: Sequence[Tensor]) -> Tensor:
    """Compute `flatten_tensors` with OneFlow ops, for any data type and with gradients."""
    return flow.cat([tensor.reshape(-1) for tensor in tensors], dim=0)

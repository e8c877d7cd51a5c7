"""Several tensors as one row of numbers, in one op: what is summed over ranks in one transfer."""

from collections.abc import Sequence

from kernels import plugin
from kernels.framework import dispatch
from kernels.runtime import Tensor, flow


def flatten_tensors(tensors: Sequence[Tensor]) -> Tensor:
    """Return (n,) float32: the elements of all tensors, one tensor after another; without gradients.

    Over ranks, tensors that are each rank's summands (`partial_sum`) give such a row, whole ones a whole row.

    Args:
        tensors: at least one, float32, of any shapes.
    Raises:
        ValueError: no tensor.
    """
    if not tensors:
        raise ValueError("no tensors: need at least one")
    with flow.no_grad():
        if not plugin.is_loaded():
            return flattened(tensors)
        return dispatch.call(dispatch.build_op("graph_train_flatten", (("tensor", len(tensors)),)), tensors)


def flattened(tensors: Sequence[Tensor]) -> Tensor:
    """Compute `flatten_tensors` with OneFlow's ops, for tensors of any data type; with gradients."""
    return flow.cat([tensor.reshape(-1) for tensor in tensors], dim=0)

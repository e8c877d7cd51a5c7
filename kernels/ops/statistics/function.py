"""Moving average of BatchNorm's running statistics, all layers in one op."""

from collections.abc import Sequence

from kernels.framework import dispatch
from kernels.framework.in_place import subtract
from kernels.plugin import is_loaded
from kernels.runtime import Tensor, flow


def average_statistics(current: Sequence[Tensor], average: Tensor, share: Tensor, index: int) -> Tensor:
    """Move `average` in place towards the current values: `average += (current - average) * share[index]`.

    Where that share is 0 (or negative, or NaN) the average stays as it is, whatever the current values are: an infinity
    among them leaves no trace.

    Args:
        current: tensors (C_i,) float32.
        average: (n,) float32, n the sum of all C_i; inside a graph the new values are there from the next call on.
        share: (m,) float32, on the device of the others.
        index: which of its numbers counts.
    Returns:
        (n,) float32: the current values, one tensor after another.
    """
    if not is_loaded():
        return average_statistics_reference(current, average, share, index)
    inputs = (("current", len(current)), ("average", 1), ("share", 1))
    op = dispatch.build_op("graph_train_average_statistics", inputs)
    with flow.no_grad():
        return dispatch.call(op, (*current, average, share), integers=(index,))


def average_statistics_reference(current: Sequence[Tensor], average: Tensor, share: Tensor, index: int) -> Tensor:
    """`average_statistics` composed of OneFlow ops."""
    with flow.no_grad():
        flat, rate = flow.cat(list(current), dim=0), share[index : index + 1]
        # Not by a product with 0 where the share is 0: an infinity that is there for now would stay for good.
        due = flow.where(rate > 0, flat, average)
        subtract(average, (average - due) * rate)
    return flat

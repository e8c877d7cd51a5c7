"""Moving average of BatchNorm's running statistics, all layers in one op."""

from collections.abc import Sequence

from kernels import plugin
from kernels.framework import dispatch
from kernels.framework.in_place import subtract
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
    if not plugin.is_loaded():
        return average_statistics_reference(current, average, share, index)
    inputs = (("current", len(current)), ("average", 1), ("share", 1))
    op = dispatch.build_op("graph_train_average_statistics", inputs)
    with flow.no_grad():
        return dispatch.call(op, (*current, average, share), integers=(index,))


def average_statistics_reference(current: Sequence[Tensor], average: Tensor, share: Tensor, index: int) -> Tensor:
    """`average_statistics` composed of OneFlow's ops."""
    with flow.no_grad():
        row, part = flow.cat(list(current), dim=0), share[index : index + 1]
        # Not by a product with 0 where there is no share: an infinity that is there for now would stay for good.
        subtract(average, (average - flow.where(part > 0, row, average)) * part)
    return row

"""Beginning of a training step: selects its scalars on the device and updates the average of BatchNorm statistics."""

from collections.abc import Sequence

from kernels import plugin
from kernels.framework import dispatch
from kernels.framework.in_place import subtract
from kernels.runtime import Tensor, flow

UPDATED = 1
"""Index of the entry of `update_parameters`' result that is 1 if the weights were updated."""


def begin_step(
    current: Sequence[Tensor], average: Tensor, rows: Tensor, previous: Tensor, *, size: int
) -> tuple[Tensor, Tensor]:
    """Select the scalars of a step by the outcome of the previous one, and average its BatchNorm statistics.

    The host need not wait for the previous step: it sends the scalars for both outcomes. The last scalar
    is the share of the current statistics in their moving average: `average += (current - average) * share`, in place.
    If it is 0, negative or NaN, the average is not changed, even if current values are not finite.

    Args:
        current: running statistics of all layers, tensors (C_i,) float32.
        average: (n,) float32, n the sum of all C_i; inside a graph the new values are visible from the next call.
        rows: (2, m) float32: scalars of this step if the previous step updated the weights, and if it did not.
        previous: (2,) float32: what `update_parameters` returned in the previous step.
        size: length of the first result, in 1 ... m - 1.
    Returns:
        The chosen row in two parts: (size,) and (m - size,) float32.
    """
    if not plugin.is_loaded():
        return begin_step_reference(current, average, rows, previous, size=size)
    inputs = (("current", len(current)), ("average", 1), ("rows", 1), ("previous", 1))
    op = dispatch.build_op("graph_train_begin_step", inputs, outputs=2)
    with flow.no_grad():
        first, second = dispatch.call_many(op, (*current, average, rows, previous), integers=(size,))
    return first, second


def begin_step_reference(
    current: Sequence[Tensor], average: Tensor, rows: Tensor, previous: Tensor, *, size: int
) -> tuple[Tensor, Tensor]:
    """Compute `begin_step` with OneFlow ops."""
    with flow.no_grad():
        row = flow.where(previous[UPDATED : UPDATED + 1] > 0.5, rows[0], rows[1])
        share, values = row[-1:], flow.cat(list(current), dim=0)
        # `where` for a share of 0, because 0 * infinity is NaN, which would stay in the average forever.
        subtract(average, (average - flow.where(share > 0, values, average)) * share)
    return row[:size], row[size:]

"""In-place changes of tensors, including parameters and buffers inside `nn.Graph.build`.

In a graph an in-place method (`tensor.sub_`) changes a temporary tensor that is not written back. Ops with mutable
inputs do write back, and OneFlow has two suitable ones. The new value is visible from the graph's next call; other ops
in the same call read the old value.
"""

from functools import cache

from kernels.framework.dispatch import Op
from kernels.runtime import Tensor, flow


def subtract(target: Tensor, decrement: Tensor, rate: float = 1.0) -> None:
    """Compute target -= rate * decrement, of the same shape, dtype and device; without gradients."""
    _run(_subtract_op(), target, decrement, rate)


def assign(target: Tensor, value: Tensor) -> None:
    """Copy value into target, of the same shape, dtype and device; without gradients."""
    _run(_assign_op(), target, value, 1.0)


@cache
def _subtract_op() -> Op:
    return flow.stateful_op("sgd_update").Input("model").Input("model_diff").Build()


@cache
def _assign_op() -> Op:
    return flow.stateful_op("assign").Input("ref").Input("value").Build()


def _run(op: Op, target: Tensor, value: Tensor, rate: float) -> None:
    # No dispatcher of `assign` is public. That of sgd_update takes any op of two inputs; `assign` reads no attributes.
    with flow.no_grad():
        flow._C.dispatch_sgd_update(
            op, (target, value), learning_rate=rate, scale=1.0, l1=0.0, l2=0.0, weight_decay=0.0
        )

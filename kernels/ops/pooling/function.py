"""Max pooling and nearest-neighbour upsampling of (B, H, W, C) activations: float32, bfloat16 or (on CUDA) float16."""

from functools import cache
from typing import Any

from kernels.framework import dispatch
from kernels.runtime import Tensor, flow


def upsample(x: Tensor, factor: int) -> Tensor:
    """Repeat each pixel: (B, H, W, C) -> (B, H * factor, W * factor, C)."""
    return _upsample_function(factor).apply(x)


def max_pool(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Apply max pooling with square windows to (B, H, W, C).

    Padding is never selected and NaN always is; of equal values, the first one is. The gradient goes to the selected
    value.

    Args:
        x: activation, with padding at least as large as the window.
        kernel, stride: pixels.
        padding: pixels on each side; at most half the kernel.
    """
    return _max_pool_function(kernel, stride, padding).apply(x)


@cache
def _max_pool_function(kernel: int, stride: int, padding: int) -> Any:
    forward_op = dispatch.op_of("graph_train_max_pool", "x", outputs=2)
    backward_op = dispatch.op_of("graph_train_max_pool_grad", "dy", "where")
    geometry = (kernel, stride, padding)

    class MaxPool(flow.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor) -> Tensor:
            y, where = dispatch.call_many(forward_op, (x,), integers=geometry)
            context.save_for_backward(where)
            context.size = (x.shape[1], x.shape[2])
            return y

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:
            (where,) = context.saved_tensors
            return dispatch.call(backward_op, (gradient, where), integers=(*geometry, *context.size))

    return MaxPool


@cache
def _upsample_function(factor: int) -> Any:
    forward_op = dispatch.op_of("graph_train_upsample", "in")
    backward_op = dispatch.op_of("graph_train_upsample_grad", "in")

    class Upsample(flow.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor) -> Tensor:
            return dispatch.call(forward_op, (x,), integers=(factor,))

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:
            return dispatch.call(backward_op, (gradient,), integers=(factor,))

    return Upsample

"""Max pooling and nearest-neighbour upsampling of (B, H, W, C) activations: float32, bfloat16 or (on CUDA) float16."""

from functools import cache
from typing import Any

from kernels.framework import dispatch
from kernels.runtime import Tensor, flow


def upsample(x: Tensor, factor: int) -> Tensor:
    """Repeat each pixel: (B, H, W, C) -> (B, H * factor, W * factor, C)."""
    return _upsample_function(factor).apply(x)


def max_pool(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Largest value of each window of (B, H, W, C) float32; padding never wins."""
    return flow._C.max_pool2d(
        x,
        kernel_size=[kernel, kernel],
        stride=[stride, stride],
        padding=[padding, padding],
        dilation=[1, 1],
        return_indices=True,  # without them OneFlow takes another op, which gives ties the gradient several times
        ceil_mode=False,
        data_format="channels_last",
    )[0]


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

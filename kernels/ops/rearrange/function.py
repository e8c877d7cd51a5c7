"""Space-to-depth and zero padding of (B, H, W, C) activations.

Float32, bfloat16 or (on CUDA) float16; values and gradients are copied.
"""

from functools import cache
from typing import Any

from kernels.framework import dispatch
from kernels.runtime import Tensor, flow

Borders = tuple[int, int, int, int]
"""Border widths in pixels: left, right, top, bottom."""


def space_to_depth(x: Tensor) -> Tensor:
    """Move 2 x 2 patches into channels: (B, H, W, C) with even H and W -> (B, H / 2, W / 2, 4 C).

    The order is the left column from top to bottom, then the right one, as in YOLOv5's `Focus`.
    """
    return _autograd_function("graph_train_space_to_depth", "graph_train_depth_to_space", ()).apply(x)


def zero_pad(x: Tensor, borders: Borders) -> Tensor:
    """Pad images with zeros: (B, H, W, C) -> (B, H + top + bottom, W + left + right, C).

    Args:
        x: activation.
        borders: not negative.
    """
    return _autograd_function("graph_train_zero_pad", "graph_train_crop", borders).apply(x)


@cache
def _autograd_function(forward: str, backward: str, integers: tuple[int, ...]) -> Any:
    forward_op, backward_op = dispatch.op_of(forward, "x"), dispatch.op_of(backward, "x")

    class Rearrange(flow.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor) -> Tensor:
            return dispatch.call(forward_op, (x,), integers=integers)

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:
            return dispatch.call(backward_op, (gradient,), integers=integers)

    return Rearrange

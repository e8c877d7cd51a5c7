"""Pixels of (B, H, W, C) activations in other places: patches as channels, and a border of zeros.

Float32, bfloat16 or (on CUDA) float16; numbers are copied, and so are their gradients.
"""

from functools import cache
from typing import Any

from kernels.framework import dispatch
from kernels.runtime import Tensor, flow

Borders = tuple[int, int, int, int]
"""Pixels left, right, at the top, at the bottom."""


def space_to_depth(x: Tensor) -> Tensor:
    """Move each patch of 2 x 2 pixels into channels: (B, H, W, C), H and W even, -> (B, H / 2, W / 2, 4 C).

    A patch's left column comes first, from top to bottom, then its right one, as in the `Focus` of YOLOv5.
    """
    return _function("graph_train_space_to_depth", "graph_train_depth_to_space", ()).apply(x)


def zero_pad(x: Tensor, borders: Borders) -> Tensor:
    """Put zeros around each image: (B, H, W, C) -> (B, H + top + bottom, W + left + right, C).

    Args:
        x: activation.
        borders: none negative.
    """
    return _function("graph_train_zero_pad", "graph_train_crop", borders).apply(x)


@cache
def _function(forward: str, backward: str, integers: tuple[int, ...]) -> Any:
    forward_op, backward_op = dispatch.op_of(forward, "x"), dispatch.op_of(backward, "x")

    class Rearrange(flow.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor) -> Tensor:
            return dispatch.call(forward_op, (x,), integers=integers)

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:
            return dispatch.call(backward_op, (gradient,), integers=integers)

    return Rearrange

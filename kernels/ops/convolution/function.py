"""Convolution on (B, H, W, C) activations; weights keep YOLOv5's shapes.

Activations are float32, bfloat16 or (on CUDA) float16, and so are their gradients; sums are float32. The reference is
`oneflow.nn.functional.conv2d` on (B, C, H, W) tensors.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cache
from typing import Any

from kernels.framework import dispatch
from kernels.runtime import Tensor, flow


@dataclass(frozen=True)
class ConvolutionGeometry:
    """Stride, zero padding on both sides and dilation as (rows, columns), and the number of groups."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def integers(self) -> tuple[int, ...]:
        """The integer attributes of the ops."""
        stride, padding, dilation, groups = astuple(self)
        return (*stride, *padding, *dilation, groups)


def convolution(x: Tensor, weight: Tensor, geometry: ConvolutionGeometry, *, packed: bool = False) -> Tensor:
    """Convolve (B, H, W, I) to (B, H', W', O).

    Args:
        x: activation.
        weight: (O, I / groups, KH, KW) float32, or `packed`: (O, KH, KW, I / groups) in the type of x, for cuDNN's
            tensor core kernels (`kernels.ops.weight_packing.function`). Its gradient has the same format.
        geometry: stride, padding, dilation and groups.
    Raises:
        ValueError: incompatible shapes or data types.
    """
    _check_shapes(x, weight, geometry.groups, packed)
    return _autograd_function(geometry, packed, x.requires_grad).apply(x, weight)


def _check_shapes(x: Tensor, weight: Tensor, groups: int, packed: bool) -> None:
    order, input_axis = ("(O, KH, KW, I / groups)", 3) if packed else ("(O, I / groups, KH, KW)", 1)
    shapes = f"activation {tuple(x.shape)}, weight {tuple(weight.shape)}, {groups} groups, packed={packed}"
    if x.ndim != 4 or weight.ndim != 4 or x.shape[3] != weight.shape[input_axis] * groups or weight.shape[0] % groups:
        raise ValueError(f"{shapes}: must be (B, H, W, I) and {order}")
    dtype = x.dtype if packed else flow.float32
    if weight.dtype != dtype:
        raise ValueError(f"{shapes}: the weight is {weight.dtype}, must be {dtype}")


@cache
def _autograd_function(geometry: ConvolutionGeometry, packed: bool, needs_input_gradient: bool) -> Any:
    forward_op = dispatch.op_of("graph_train_convolution", "x", "weight")
    data_op = dispatch.op_of("graph_train_convolution_data_grad", "dy", "weight", "x")
    filter_op = dispatch.op_of("graph_train_convolution_filter_grad", "dy", "x", "weight")
    integers = (*geometry.integers, int(packed))

    class Convolution(flow.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor, weight: Tensor) -> Tensor:
            context.save_for_backward(x, weight)
            return dispatch.call(forward_op, (x, weight), integers=integers)

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Sequence[Tensor | None]:
            x, weight = context.saved_tensors
            dx = dispatch.call(data_op, (gradient, weight, x), integers=integers) if needs_input_gradient else None
            return dx, dispatch.call(filter_op, (gradient, x, weight), integers=integers)

    return Convolution

"""Bias addition on (B, H, W, C) activations, with optional SiLU."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from kernels.framework import dispatch
from kernels.framework.activation_type import ActivationType
from kernels.runtime import Tensor, flow


def add_bias(x: Tensor, bias: Tensor, *, silu: bool = False, to_float32: bool = False) -> Tensor:
    """Add a bias to each channel.

    Args:
        x: (B, H, W, C) activation.
        bias: (C,) float32.
        silu: apply SiLU to the sum; without gradients, for networks with folded BatchNorm.
        to_float32: return unrounded float32 sums instead of the type of x.
    Raises:
        ValueError: `silu` if a gradient is required.
    """
    if silu and flow.is_grad_enabled() and (x.requires_grad or bias.requires_grad):
        raise ValueError("add_bias with silu has no gradient: use batch_norm with silu, or apply SiLU separately")
    return _autograd_function(ActivationType.of(x.dtype), silu, to_float32).apply(x, bias)


@cache
def _autograd_function(kind: ActivationType, silu: bool, to_float32: bool) -> Any:
    forward_op = dispatch.op_of("graph_train_add_bias", "x", "bias")
    backward_op = dispatch.op_of("graph_train_add_bias_grad", "dy", outputs=2)

    class AddBias(flow.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor, bias: Tensor) -> Tensor:
            return dispatch.call(forward_op, (x, bias), integers=(int(to_float32), int(silu)))

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Sequence[Tensor]:
            return tuple(dispatch.call_many(backward_op, (gradient,), integers=(int(kind),)))

    return AddBias
